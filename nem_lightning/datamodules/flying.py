"""Sequences of objects that fly: they move straight on and bounce off the walls.

Shapes: N sequences, B of them in a batch, F frames, O objects, H by W pixels.

The generator of the published sets is not public, so this motion is ours. An object starts at a place drawn uniformly
inside the image, with a velocity drawn uniformly, separately for rows and columns. It moves straight on, is reflected
when it would leave the image, and is drawn at the nearest whole pixel. Positions and velocities are integers, in
``UNIT`` parts of a pixel, so the same seed gives the same set on every machine.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from nem_lightning.datamodules import published
from nem_lightning.datamodules.base import Batch, Frames, FramesDataModule
from nem_lightning.datamodules.shapes import MASKS
from nem_lightning.errors import require, require_count, require_number

log = logging.getLogger(__name__)

UNIT = 256
SPLITS = {"train": ("training", 50_000), "val": ("validation", 10_000), "test": ("test", 10_000)}
"""Of each stage, the group of a published file, and how many sequences are generated."""


class Templates(NamedTuple):
    """What objects look like."""

    pixels: Tensor
    """(M, h, w) uint8; an object covers the pixels that are at least half as bright as ``scale``."""
    extents: np.ndarray
    """(M, 2), rows and columns that each one takes, from the upper left corner of its pixels."""
    scale: int
    """What a pixel is divided by when it becomes a float."""

    @classmethod
    def of(cls, masks: Sequence[np.ndarray]) -> Self:
        """Give binary templates from boolean masks (h, w) of any sizes."""
        extents = np.array([mask.shape for mask in masks])
        pixels = np.zeros((len(masks), *extents.max(0)), np.uint8)
        for index, mask in enumerate(masks):
            pixels[index, : mask.shape[0], : mask.shape[1]] = mask
        return cls(torch.from_numpy(pixels), extents, scale=1)


def fly(starts: np.ndarray, velocities: np.ndarray, room: np.ndarray, num_frames: int) -> np.ndarray:
    """Move objects straight on, reflected at 0 and at ``room``.

    Args:
        starts: integers from 0 to ``room``, any shape S, in ``UNIT`` parts of a pixel.
        velocities: integers, S, in parts a frame.
        room: integers of at least 0, S: how far an object can move.
        num_frames: F.

    Returns:
        Whole pixels, (F, *S) int16.
    """
    moved = starts + np.arange(num_frames).reshape(-1, *[1] * starts.ndim) * velocities
    unfolded = moved % np.maximum(2 * room, 1)  # there and back
    return ((np.minimum(unfolded, 2 * room - unfolded) + UNIT // 2) // UNIT).astype(np.int16)


def render(templates: Tensor, scale: int, kinds: Tensor, positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Draw objects, on the device of the arguments. If objects overlap, the brighter pixel is seen.

    Args:
        templates: (M, h, w) uint8.
        scale: the brightest pixel; an object covers the pixels of at least half of this.
        kinds: (B, O), which template each object has.
        positions: (B, F, O, 2), row and column of each object's upper left corner.
        size: H = W.

    Returns:
        Images (B, F, H, W) uint8, and groups (B, F, H, W) uint8: k = 1, 2, ... if only object k covers the pixel,
        0 if none or several do.
    """
    batch, num_frames, num_objects = positions.shape[:3]
    pixels = templates[kinds.long()].flatten(2)  # (B, O, hw)
    height, width = templates.shape[1:]
    device = positions.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    offsets = (rows[:, None] * size + columns).flatten()  # (hw,)
    corners = positions[..., 0].long() * size + positions[..., 1]  # (B, F, O)
    places, nowhere = corners.unsqueeze(-1) + offsets, size * size  # (B, F, O, hw)

    def where(chosen: Tensor) -> Tensor:
        return torch.where(chosen.unsqueeze(1), places, nowhere).flatten(2)  # (B, F, O hw)

    seen_at, covered_at = where(pixels > 0), where(2 * pixels.int() >= scale)
    canvas = torch.zeros(batch, num_frames, size * size + 1, dtype=torch.uint8, device=device)
    objects = torch.arange(1, num_objects + 1, dtype=torch.uint8, device=device)
    seen = pixels.unsqueeze(1).expand(-1, num_frames, -1, -1).flatten(2)
    numbers = objects[:, None].expand(batch, num_frames, -1, height * width).flatten(2)
    images = canvas.scatter_reduce(2, seen_at, seen, "amax")
    first, last = (canvas.scatter_reduce(2, covered_at, numbers, of, include_self=False) for of in ("amin", "amax"))
    groups = torch.where(first == last, last, 0)  # first and last differ if there are several
    return images[..., :-1].unflatten(2, (size, size)), groups[..., :-1].unflatten(2, (size, size))


class Trajectories(Frames):
    """Sequences that are drawn on demand: 50,000 of them take megabytes, not gigabytes.

    Args:
        templates: what objects look like.
        kinds: (N, O) integers, which template each object has.
        positions: (N, F, O, 2) int16, row and column of each object.
        size: height and width of the images.
        device: where they are drawn.
    """

    def __init__(
        self, templates: Templates, kinds: np.ndarray, positions: np.ndarray, size: int, device: torch.device
    ) -> None:
        self.device = device
        self.templates = templates.pixels.to(device)
        self.scale = templates.scale
        self.kinds = torch.from_numpy(kinds).to(device)
        self.positions = torch.from_numpy(positions).to(device)
        self.size = size

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Draw a batch."""
        chosen = torch.as_tensor(indices).to(self.positions.device)
        images, groups = render(self.templates, self.scale, self.kinds[chosen], self.positions[chosen], self.size)
        return {"frames": images.unsqueeze(2).float() / self.scale, "groups": groups.long()}


class FlyingDataModule(FramesDataModule[Frames]):
    """Sequences of flying objects, generated from a seed: 50,000 to train on, 10,000 to validate on and 10,000 to test.

    A subclass gives the templates, and the name of a published file that is read instead if ``data_dir`` has it.

    Args:
        data_dir: the folder that a published file may be in.
        size: height and width in pixels.
        num_objects: O in each sequence, at least 1.
        num_frames: F, at least 2; T steps need T + 1.
        max_speed: pixels a frame, along rows and along columns, at least 0.
        batch_size: sequences in a batch, at least 1.
        generation_seed: seed of the generated sequences; each seed gives another set.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range, or a published file that cannot be used.
    """

    def __init__(
        self,
        data_dir: str,
        size: int,
        num_objects: int,
        num_frames: int,
        max_speed: float,
        batch_size: int,
        generation_seed: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size, seed)
        require_count("num_objects", num_objects)
        require_count("num_frames", num_frames, minimum=2)
        require_number("max_speed", max_speed, minimum=0)
        require_count("generation_seed", generation_seed, minimum=0)
        self.image_shape = (1, size, size)
        self.num_objects = num_objects
        self.num_frames = num_frames
        self.max_speed = max_speed
        self.generation_seed = generation_seed
        name = self.published_name()
        path = None if name is None else Path(data_dir).expanduser() / name
        self.path = path if path is not None and path.exists() else None
        if self.path is not None:
            log.info("%s: reading %s instead of generating", type(self).__name__, path)

    def published_name(self) -> str | None:
        """Give the name of the published file of these settings; None if no file of them is published."""
        raise NotImplementedError

    def templates(self, stage: str) -> Templates:
        """Give what objects of a stage look like."""
        raise NotImplementedError

    def load(self, stage: str) -> Frames:
        name, count = SPLITS[stage]
        size = self.image_shape[1]
        if self.path is not None:
            return published.read(self.path, name, size, self.binary, self.num_frames)
        templates = self.templates(stage)
        rng = np.random.default_rng([self.generation_seed, list(SPLITS).index(stage)])
        kinds = rng.integers(len(templates.pixels), size=(count, self.num_objects))
        room = (size - templates.extents[kinds]) * UNIT  # (N, O, 2)
        starts = rng.integers(room + 1)
        fastest = round(self.max_speed * UNIT)
        velocities = rng.integers(-fastest, fastest + 1, size=room.shape)
        positions = fly(starts, velocities, room, self.num_frames).swapaxes(0, 1)  # (N, F, O, 2)
        return Trajectories(templates, kinds, np.ascontiguousarray(positions), size, self.device())


class FlyingShapesDataModule(FlyingDataModule):
    """Flying shapes: binary sequences of the squares and triangles of Shapes.

    A published file in ``data_dir`` is read instead of generating: ``flying_shapes.h5`` (three objects),
    ``flying_shapes_4.h5`` or ``flying_shapes_5.h5``, if ``size`` is 28 and ``generation_seed`` 0.

    Args:
        data_dir: the folder that a published file may be in.
        size: height and width in pixels, at least 12.
        num_objects: shapes in each sequence, from 1 to as many as fit beside each other (5 for 28 pixels).
        num_frames: F, at least 2; T steps need T + 1.
        max_speed: pixels a frame, along rows and along columns, at least 0.
        batch_size: sequences in a batch, at least 1.
        generation_seed: seed of the generated sequences; each seed gives another set.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range, or a published file that cannot be used.
    """

    binary = True

    def __init__(
        self,
        data_dir: str,
        size: int = 28,
        num_objects: int = 3,
        num_frames: int = 21,
        max_speed: float = 1.0,
        batch_size: int = 64,
        generation_seed: int = 0,
        seed: int = 0,
    ) -> None:
        require_count("size", size, minimum=12)  # the width of the triangle
        super().__init__(data_dir, size, num_objects, num_frames, max_speed, batch_size, generation_seed, seed)
        most = size * size // 12**2
        require(num_objects <= most, f"num_objects={num_objects}: must be at most {most} for images of size={size}")

    def published_name(self) -> str | None:
        if (self.image_shape[1], self.generation_seed) != (28, 0):
            return None
        return "flying_shapes.h5" if self.num_objects == 3 else f"flying_shapes_{self.num_objects}.h5"

    def templates(self, stage: str) -> Templates:
        return Templates.of(MASKS)
