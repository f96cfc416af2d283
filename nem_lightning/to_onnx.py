"""Write a trained model as an ONNX file, to run it without PyTorch: ``python -m nem_lightning.to_onnx --help``.

Shapes: B images, S starts, K components, C channels, H by W pixels.
"""

import argparse
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.grouping import GroupingModel, frame_pair
from nem_lightning.models.starts import noise, regions
from nem_lightning.runs.command_line import Place, print_places
from nem_lightning.shipped import MODELS
from nem_lightning.training import checkpoints

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED = 5
"""Images on which the file is compared with PyTorch."""


class Found(NamedTuple):
    """What the graph gives."""

    labels: Tensor
    """The component of each pixel, (B, H, W), integers from 1 to K; 0 for the black pixels of binary images."""
    responsibilities: Tensor
    """gamma, (B, K, 1, H, W)."""
    means: Tensor
    """mu, (B, K, C, H, W)."""


class StillsGraph(nn.Module):
    """A model as a function of still images alone: K, T, the number of starts and the random numbers are constants.

    All images get the same random numbers. All starts run as one batch, of S B images; each image keeps the start
    with the lowest energy.

    Args:
        model: N-EM or RNN-EM.
        generator: draws the random numbers, once.

    Raises:
        InputError: a model of another class, one that chooses K for each image, or one with another start.
    """

    model: NeuralEM
    draws: Tensor

    def __init__(self, model: GroupingModel, generator: torch.Generator) -> None:
        super().__init__()
        if not isinstance(model, NeuralEM):
            raise InputError(f"{type(model).__name__} cannot be written as ONNX; N-EM and RNN-EM can")
        require(model.choose_up_to is None, "num_components=auto: the graph has a fixed K; give a number")
        require(
            model.init in ("noise", "bright_regions"),
            f"init={model.init}: cannot be written as ONNX; noise and bright_regions can",
        )
        self.model = model
        starts, components = model.num_starts, model.num_components
        if model.init == "noise":
            blank = torch.zeros(starts, *model.image_shape, device=generator.device)
            draws = noise(blank, components, generator)  # (S, K, 1, H, W)
        else:
            draws = torch.rand(starts, components, 1, generator=generator, device=generator.device)
        self.register_buffer("draws", draws)

    def forward(self, images: Tensor) -> Found:
        """Group still images, (B, C, H, W)."""
        model, starts = self.model, self.model.num_starts
        of_starts = images.unsqueeze(1).repeat(1, starts, 1, 1, 1).flatten(0, 1)  # (B S, C, H, W)
        draws = self.draws.repeat(len(images), *[1] * (self.draws.dim() - 1))  # (B S, K, ...)
        gamma = draws if model.init == "noise" else regions(of_starts, draws.transpose(0, 1))
        frames = of_starts.unsqueeze(1)
        end = model.blank(of_starts, gamma)
        for iterate in model.steps(end, frames, frames, model.num_steps):
            end = iterate
        energy = model.energy(frame_pair(frames, model.num_steps)[1], end).unflatten(0, (-1, starts))  # (B, S)
        best = energy.argmin(1) + starts * torch.arange(len(images), device=images.device)
        gamma, means = end.responsibilities[best], end.mean[best]
        labels = gamma.squeeze(2).argmax(1) + 1
        if model.binary:
            labels = labels * (images > 0).any(1)
        return Found(labels, gamma, means)


def main() -> None:
    """Read the command line, write the file, and say where the file is and what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m nem_lightning.to_onnx", description="Write a trained model as an ONNX file."
    )
    parser.add_argument("ckpt_path", help=f"the checkpoint, or the name of a model: {', '.join(MODELS)}")
    parser.add_argument("file", type=Path, help="the file that is written; it must not be there yet")
    parser.add_argument("--num-components", type=int, metavar="K", help="as trained by default")
    parser.add_argument("--num-steps", type=int, metavar="T", help="as trained by default")
    parser.add_argument("--num-starts", type=int, metavar="S", help="as trained by default")
    parser.add_argument("--seed", type=int, default=0, help="of the starts' random numbers (default: 0)")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in ("num_components", "num_steps", "num_starts")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # otherwise PyTorch misses torchvision
    try:
        difference, shapes = write(arguments.ckpt_path, arguments.file, sizes, arguments.seed)
    except InputError as error:
        sys.exit(" ".join(str(error).split()))
    places = [Place("written", f"{arguments.file} ({arguments.file.stat().st_size / 1e6:.1f} MB)")]
    places += [Place(name, shape) for name, shape in shapes.items()]
    print_places([*places, Place("differs from PyTorch", f"by {difference:.1g} at most")], Console())


def write(
    checkpoint: str | Path, file: Path, sizes: dict[str, int | None] | None = None, seed: int = 0
) -> tuple[float, dict[str, str]]:
    """Write a model as an ONNX file, and compare the file with PyTorch.

    Args:
        checkpoint: the path of the model, or the name of one of :data:`nem_lightning.shipped.MODELS`.
        file: is written whole or not at all.
        sizes: ``num_components``, ``num_steps`` and ``num_starts``; as trained by default.
        seed: of the starts' random numbers.

    Returns:
        The largest difference from PyTorch in responsibilities and means, and the shapes of the graph's inputs and
        outputs, as text, by name.

    Raises:
        InputError: a checkpoint that cannot be used or written as ONNX, a file or folder that does not fit, a missing
            package, or a file that gives something else than PyTorch.
    """
    require(not file.exists(), f"{file}: is there already; choose another file")
    require(file.resolve().parent.is_dir(), f"{file}: its folder does not exist")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    require(not missing, f"{', '.join(missing)}: not installed; pip install 'nem-lightning[onnx]'")
    module = checkpoints.load_module(checkpoint, seed=seed, sizes=sizes or {})
    graph = StillsGraph(module.model, module.generator("test", 0)).eval()
    images = torch.rand(CHECKED, *module.model.image_shape, generator=torch.Generator().manual_seed(0))
    images = (images > 0.8).float() if module.model.binary else images
    program = torch.onnx.export(
        graph,
        (images[:2],),
        input_names=["images"],
        output_names=list(Found._fields),
        dynamic_shapes={"images": {0: "images"}},
        dynamo=True,
        verbose=False,
        custom_translation_table={torch.ops.aten.sigmoid.default: _sigmoid()},
    )
    assert program is not None
    with atomic_file(file) as temporary:
        program.save(temporary)
        found = run(temporary, images)
        with torch.no_grad():
            expected = {name: value.numpy() for name, value in graph(images)._asdict().items()}
        pairs = [(found[name], expected[name]) for name in ("responsibilities", "means")]
        difference = max(float(np.abs(one - other).max()) for one, other in pairs)
        require(difference < 1e-3, f"{file}: differs from PyTorch by {difference:.1g}; not written")
    arrays = {"images": images.numpy(), **expected}
    return difference, {
        name: f"(B, {', '.join(map(str, array.shape[1:]))}) {array.dtype}" for name, array in arrays.items()
    }


def _sigmoid() -> Any:
    """Give 1 / (1 + exp(-x)) as ONNX operators.

    ONNX Runtime's own sigmoid is wrong by up to 1e-7, and 0 below about -18. The E-step divides numbers of this size.
    """
    from onnxscript import opset18

    op: Any = opset18

    def sigmoid(x: Any) -> Any:
        one = op.CastLike(op.Constant(value_float=1.0), x)
        return op.Reciprocal(op.Add(one, op.Exp(op.Neg(x))))

    return sigmoid


def run(file: Path, images: Any) -> dict[str, np.ndarray]:
    """Run a file of :func:`write` on images, (B, C, H, W) float32, and give what it finds, by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    values = session.run(None, {"images": np.asarray(images)})
    return {name: np.asarray(value) for name, value in zip(Found._fields, values, strict=True)}


if __name__ == "__main__":
    main()
