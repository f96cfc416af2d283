"""Checkpoints small enough to ship: the weights, and how the model is built."""

import io
from collections.abc import Iterator
from pathlib import Path

import torch

from nem_lightning.errors import require
from nem_lightning.files import atomic_file
from nem_lightning.training import checkpoints

MOST_BYTES = 2_000_000
DTYPES = (torch.float32, torch.float16)
"""The first in which the weights are small enough is taken."""


def compact(path: Path, target: Path) -> str:
    """Write what :func:`nem_lightning.training.checkpoints.load` needs: the weights and the model's settings, no optimizer.

    Args:
        path: the checkpoint.
        target: where it goes; not touched where something is wrong.

    Returns:
        In what precision the weights are: "float32", or "float16" where they would be more than 2 MB.

    Raises:
        InputError: not a checkpoint, too large even in float16, or the model's settings name a place in a file system.
    """
    saved = checkpoints.read(path)
    model = saved[checkpoints.KEY]["model"]
    for name, value in _strings(model, "model"):
        require("/" not in value and "\\" not in value, f"{path}: {name}={value}: names a place; cannot be shipped")
    weights = {name: value for name, value in saved["state_dict"].items() if name.startswith("em.")}
    for dtype in DTYPES:
        contents = io.BytesIO()  # a file would write its own name into itself
        rounded = {name: value.to(dtype).clone() for name, value in weights.items()}
        torch.save({checkpoints.KEY: {"model": model}, "state_dict": rounded}, contents)
        if contents.tell() <= MOST_BYTES:
            with atomic_file(target) as file:
                file.write_bytes(contents.getvalue())
            return str(dtype).removeprefix("torch.")
    require(False, f"{path}: {contents.tell() / 1e6:.1f} MB even in float16; must be at most {MOST_BYTES / 1e6:g} MB")


def _strings(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Every text in nested settings, and what it is called."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{name}.{index}")
