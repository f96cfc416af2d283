"""Measure how well models predict unseen frames: the error by horizon, beside that of repeating the last seen frame."""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import nem_lightning.datamodules
from nem_lightning.datamodules.flying import FlyingDataModule
from nem_lightning.errors import InputError, require, require_count
from nem_lightning.files import atomic_file
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.roll_out import roll_out
from nem_lightning.training import checkpoints

BATCH = 50
STAYS = "the last frame stays"


def main() -> None:
    """Read the command line, then :func:`run`."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.roll_out", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--checkpoint", action="append", required=True, help="of a model for sequences; may be repeated"
    )
    parser.add_argument("--horizon", type=int, default=10, help="how many frames to predict (10)")
    parser.add_argument("--sequences", type=int, default=500, help="the first so many test sequences (500)")
    parser.add_argument("--data-dir", default="data", help="the folder of the data sets (data)")
    parser.add_argument("--out", default="outputs/roll_out.csv", help="the table that is written")
    arguments = parser.parse_args()
    try:
        run(arguments.checkpoint, arguments.horizon, arguments.sequences, arguments.data_dir, Path(arguments.out))
    except InputError as error:
        sys.exit(str(error))


def run(paths: Sequence[str], horizon: int, count: int, data_dir: str, out: Path) -> None:
    """Measure, print and write the mean squared error of each predicted frame, over test sequences of the first model's
    data.

    Raises:
        InputError: a checkpoint that cannot be read, or is not of NeuralEM on flying objects; checkpoints of several T;
            or a number below 1.
    """
    require_count("--horizon", horizon)
    require_count("--sequences", count)
    models = {path: _model(path) for path in paths}
    num_steps = models[paths[0]].num_steps
    for path, model in models.items():
        message = f"--checkpoint={path}: num_steps is {model.num_steps}, the first one's {num_steps}; must be equal"
        require(model.num_steps == num_steps, message)
    test = _data(paths[0], data_dir, num_steps + 1 + horizon).load("test")
    require(count <= len(test), f"--sequences={count}: must be at most {len(test)}")
    frames = test.__getitems__(range(count))["frames"]
    errors = {STAYS: _errors([frames[:, num_steps]] * horizon, frames, num_steps)}
    for path, model in models.items():
        parts = []
        for start in range(0, len(frames), BATCH):
            some = frames[start : start + BATCH]
            generator = torch.Generator().manual_seed(0)
            found = roll_out(model, some, num_steps=num_steps, horizon=horizon, generator=generator)
            parts.append(_errors(list(found), some, num_steps) * len(some) / len(frames))
        errors[f"K={model.num_components}: {path}"] = torch.stack(parts).sum(0)
    _show(errors)
    with atomic_file(out) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["frames ahead", *errors])
        table.writerows([ahead, *(f"{of[ahead - 1]:.5f}" for of in errors.values())] for ahead in range(1, horizon + 1))
    Console().print(f"table  {out}", highlight=False, soft_wrap=True)


def _model(path: str) -> NeuralEM:
    model = checkpoints.load(path)
    require(isinstance(model, NeuralEM), f"--checkpoint={path}: is no NeuralEM")
    assert isinstance(model, NeuralEM)
    return model


def _data(path: str, data_dir: str, num_frames: int) -> FlyingDataModule:
    """Give the data that a checkpoint's model was trained on, with other numbers of frames."""
    config = checkpoints.read(path)[checkpoints.KEY].get("data")
    require(config is not None, f"--checkpoint={path}: does not say what it was trained on; must be of a run's folder")
    name = str(config["_target_"]).rpartition(".")[2]
    kind = getattr(nem_lightning.datamodules, name, None)
    require(
        isinstance(kind, type) and issubclass(kind, FlyingDataModule), f"--checkpoint={path}: trained on no flying set"
    )
    assert isinstance(kind, type)
    given = {key: value for key, value in config.items() if key != "_target_"}
    own = {
        key: str(value).replace(str(Path(given["data_dir"])), data_dir, 1)
        for key, value in given.items()
        if "_dir" in key
    }
    return kind(**{**given, **own, "num_frames": num_frames})


def _errors(predicted: Sequence[Tensor], frames: Tensor, num_steps: int) -> Tensor:
    """Give the mean squared error of each predicted frame, (horizon,)."""
    true = frames[:, num_steps + 1 : num_steps + 1 + len(predicted)]
    return (torch.stack(list(predicted), 1) - true).square().mean((0, 2, 3, 4))


def _show(errors: Mapping[str, Tensor]) -> None:
    table = Table(title="Mean squared error by frames ahead", title_justify="left")
    table.add_column("ahead", justify="right")
    for name in errors:
        table.add_column(name, justify="right")
    for ahead in range(len(errors[STAYS])):
        table.add_row(str(ahead + 1), *(f"{of[ahead]:.4f}" for of in errors.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
