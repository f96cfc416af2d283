"""Say what a perfect tracker would score on flying shapes.

Its components know the true shapes, but not for certain where they will be in the next frame. This bounds what a model
can reach that does not know how fast objects move.
"""

import argparse
import os
import sys

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nem_lightning.datamodules import FlyingShapesDataModule
from nem_lightning.datamodules.flying import Trajectories, render
from nem_lightning.errors import InputError
from nem_lightning.scores.mutual_information import AdjustedMutualInformation

SEQUENCES = 1024
"""Of the test set, the first ones."""
CASES = {
    "the next frame": (0, 1),
    "the next frame, give or take a pixel": (0, 3),
    "the frame before, so nothing moves": (1, 1),
    "the frame before, give or take a pixel": (1, 3),
}
"""What is known: how many frames old, and the pixels in a row and in a column that an object may be at alike."""


def shapes(data: Trajectories, count: int) -> Tensor:
    """Draw each object of the first sequences alone: (N, F, O, H, W), 0 or 1."""
    kinds, positions = data.kinds[:count], data.positions[:count]
    alone = [
        render(data.templates, kinds[:, k : k + 1], positions[:, :, k : k + 1], data.size)[0]
        for k in range(kinds.shape[1])
    ]
    return torch.stack(alone, 2).float()


def score(known: Tensor, groups: Tensor, spread: int) -> float:
    """Give the AMI (max) of a grouping in which each pixel goes to the component that most likely covers it.

    Ties are broken at random.

    Args:
        known: what each component knows, (N, O, H, W).
        groups: the true groups of the next frame, (N, H, W).
        spread: odd; an object may be at any of ``spread`` x ``spread`` places around the known one.
    """
    likely = F.avg_pool2d(known, spread, stride=1, padding=spread // 2)
    ties = torch.rand(likely.shape, generator=torch.Generator().manual_seed(0))
    metric = AdjustedMutualInformation()
    metric.update((likely + 1e-4 * ties).argmax(1), groups)
    return metric.compute().item()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.perfect_tracker", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--objects", type=int, default=3, help="in each sequence (default: 3)")
    arguments = parser.parse_args()
    try:
        data = FlyingShapesDataModule(data_dir=os.devnull, num_objects=arguments.objects).load("test")
    except InputError as error:
        sys.exit(str(error))
    assert isinstance(data, Trajectories)
    alone = shapes(data, SEQUENCES)
    groups = data.__getitems__(range(SEQUENCES))["groups"][:, -1]
    table = Table(title=f"{arguments.objects} objects, {SEQUENCES:,} test sequences", title_justify="left")
    table.add_column("known of each shape")
    table.add_column("AMI (max)", justify="right")
    for title, (age, spread) in CASES.items():
        table.add_row(title, f"{score(alone[:, -1 - age], groups, spread):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
