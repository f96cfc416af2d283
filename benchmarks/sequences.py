"""The speed of training on sequences and on stills, and of drawing flying shapes."""

import statistics

import torch

from benchmarks import timing
from benchmarks.steps import Case, em_of, our_module
from nem_lightning.datamodules.flying import FlyingShapesDataModule


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
