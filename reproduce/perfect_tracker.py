"""Say what a perfect tracker would score on flying shapes that remembers a few frames.

Its components know the true shapes, and where each of them was in the last frames, so also how fast it may be. This
bounds what a model can reach that remembers as many frames.
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nem_lightning.datamodules import FlyingShapesDataModule
from nem_lightning.datamodules.flying import UNIT, Trajectories, fly
from nem_lightning.errors import InputError
from nem_lightning.scores.mutual_information import AdjustedMutualInformation

SEQUENCES = 1024
"""Of the test set, the first ones."""
REMEMBERED = (1, 2, 3, 5, 10)
"""Frames before the last one."""
STARTS_EVERY = 8
VELOCITIES_EVERY = 4
"""The steps between the motions that are thought possible, in ``UNIT`` parts of a pixel."""


@functools.cache
def possible(room: int, num_frames: int) -> np.ndarray:
    """Give the positions of all possible motions along one axis, up to a pixel a frame: (M, num_frames) whole pixels.

    Args:
        room: pixels that an object can move.
        num_frames: F.
    """
    starts = np.arange(STARTS_EVERY // 2, room * UNIT, STARTS_EVERY)
    velocities = np.arange(-UNIT, UNIT + 1, VELOCITIES_EVERY)
    starts, velocities = (each.ravel() for each in np.meshgrid(starts, velocities))
    return fly(starts, velocities, np.full(starts.shape, room * UNIT), num_frames).T


def next_position(room: int, seen: Sequence[int]) -> np.ndarray:
    """Give the probability of each next position along an axis. All motions that fit the seen positions are as likely.

    Args:
        room: pixels that the object can move.
        seen: its positions in the last frames.

    Returns:
        (room + 1,) probabilities.
    """
    motions = possible(room, len(seen) + 1)
    fits = motions[(motions[:, :-1] == np.array(seen)).all(1), -1]
    if not len(fits):  # the true motion is between possible ones
        return next_position(room, seen[1:])
    return np.bincount(fits, minlength=room + 1) / len(fits)


def expected(data: Trajectories, extents: np.ndarray, sequence: int, remembered: int) -> Tensor:
    """Give how likely each object of a sequence covers each pixel of the last frame: (O, H, W)."""
    images = []
    for kind, positions in zip(data.kinds[sequence], data.positions[sequence].swapaxes(0, 1), strict=True):
        height, width = extents[kind]
        seen = positions[-1 - remembered : -1].tolist()
        axes = [next_position(data.size - side, [place[a] for place in seen]) for a, side in enumerate((height, width))]
        image = np.zeros((data.size, data.size))
        shape = data.templates[kind, :height, :width].numpy() > 0
        for row in axes[0].nonzero()[0]:
            for column in axes[1].nonzero()[0]:
                image[row : row + height, column : column + width] += axes[0][row] * axes[1][column] * shape
        images.append(torch.from_numpy(image))
    return torch.stack(images)


def score(data: Trajectories, extents: np.ndarray, remembered: int) -> float:
    """Give the AMI (max) if each pixel of the last frame goes to the object that most likely covers it.

    Ties are broken at random.
    """
    likely = torch.stack([expected(data, extents, n, remembered) for n in range(SEQUENCES)])
    ties = torch.rand(likely.shape, generator=torch.Generator().manual_seed(0))
    metric = AdjustedMutualInformation()
    metric.update((likely + 1e-6 * ties).argmax(1), data.__getitems__(range(SEQUENCES))["groups"][:, -1])
    return metric.compute().item()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.perfect_tracker", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--objects", type=int, default=3, help="in each sequence (default: 3)")
    arguments = parser.parse_args()
    try:
        module = FlyingShapesDataModule(data_dir=os.devnull, num_objects=arguments.objects)
        data, extents = module.load("test"), module.templates("test").extents
    except InputError as error:
        sys.exit(str(error))
    assert isinstance(data, Trajectories)
    table = Table(title=f"{arguments.objects} objects, {SEQUENCES:,} test sequences", title_justify="left")
    table.add_column("frames remembered", justify="right")
    table.add_column("AMI (max)", justify="right")
    for remembered in REMEMBERED:
        table.add_row(str(remembered), f"{score(data, extents, remembered):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
