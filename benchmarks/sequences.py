"""The speed of training on sequences and on stills, of drawing flying shapes, and of the convolutional decoder."""

import statistics

import torch
from torch import nn

from benchmarks import timing
from benchmarks.steps import Case, em_of, our_module
from nem_lightning.datamodules.flying import FlyingShapesDataModule
from nem_lightning.models.networks import ConvDecoder, DoublingConv2d


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, float]:
    """Give the examples per second of training steps on stills and on sequences, and of drawing the sequences.

    Steps on stills are measured both by the fast path and by the loop. All have the same T and take turns; the numbers
    are medians.
    """
    data = FlyingShapesDataModule("", size=case.size, num_objects=1, num_frames=case.steps + 1)
    data.setup("fit")
    train, chosen = data.stages["train"], range(case.batch)
    frames = train.__getitems__(chosen)["frames"].to(device)
    stills = frames[:, :1]

    def step(fast: str | bool, given: torch.Tensor):
        module = our_module(case).to(device)
        model = em_of(module)
        model.fast = fast

        def run() -> None:
            module.zero_grad()
            model.training_loss(given).total.backward()

        return run

    functions = {
        "stills": step("auto", stills),
        "stills by the loop": step(False, stills),
        "sequences": step("auto", frames),
        "drawing": lambda: train.__getitems__(chosen),
    }
    times = timing.in_turns(functions, rounds, device)
    return {name: case.batch / statistics.median(seconds) for name, seconds in times.items()}


def doubling(case: Case, device: torch.device, rounds: int) -> dict[str, float]:
    """Give the milliseconds of a pass through a convolutional decoder and back, for a batch with all its components.

    ``as published`` doubles the image first, and then convolves it.
    """
    ours = ConvDecoder((1, case.size, case.size), state_size=100).to(device)
    state = torch.randn(case.batch * case.components, 100, device=device)

    def pass_through(decoder: nn.Module):
        return lambda: decoder(state).sum().backward()

    functions = {"ours": pass_through(ours), "as published": pass_through(_as_published(ours).to(device))}
    times = timing.in_turns(functions, rounds, device)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def _as_published(decoder: ConvDecoder) -> nn.Module:
    """Give the same decoder with three layers instead of each doubling convolution; the other layers are shared."""
    layers: list[nn.Module] = []
    for layer in decoder:
        if isinstance(layer, DoublingConv2d):
            layers += [nn.Upsample(scale_factor=2), nn.ZeroPad2d((1, 2, 1, 2))]
            layers.append(nn.Conv2d(layer.in_channels, layer.out_channels, 4))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)
