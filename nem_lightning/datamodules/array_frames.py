"""Batches out of an array that may be larger than memory.

Shapes: N images or sequences, F frames, C channels, H by W pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nem_lightning.datamodules import arrays
from nem_lightning.datamodules.base import Batch, Frames, whole_groups


class ArrayFrames(Frames):
    """Images in an array that may be larger than memory: a batch is read when it is asked for.

    Args:
        images: any array that can be indexed, with N first.
        masks: the same, or None.
        chosen: (N',) the indices of those that are used, in rising order.
        layout: the order of the axes of ``images``.
        scale: divisor of the pixels.
        binary: whether pixels must be 0 or 1.
        channels: C; the first C channels are used.
        size: H and W; images of another size are resized.
        background: whether the first of the masks of objects is that of the background.
        name: of the file, for errors.
    """

    def __init__(
        self,
        images: Any,
        masks: Any,
        chosen: np.ndarray,
        layout: str,
        scale: float,
        binary: bool,
        channels: int,
        size: tuple[int, int],
        background: bool,
        name: str,
    ) -> None:
        self.images, self.masks, self.chosen, self.layout, self.scale = images, masks, chosen, layout, scale
        self.binary, self.channels, self.size, self.background, self.name = binary, channels, size, background, name

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Read a batch.

        Raises:
            InputError: pixels or labels that are not what the images have that were looked at first.
        """
        rows = self.chosen[np.asarray(indices)]
        pixels = pixels_of(self.images, rows, self.layout, self.channels, self.scale)
        arrays.require_pixels(pixels, self.binary, self.name)
        frames = torch.from_numpy(pixels)
        count, num_frames, _, *size = frames.shape
        if tuple(size) != self.size:
            resized = F.interpolate(frames.flatten(0, 1), self.size, mode="area")
            frames = resized.round() if self.binary else resized
            frames = frames.unflatten(0, (count, num_frames))
        batch = {"frames": frames}
        if self.masks is not None:
            masks = rows_of(self.masks, rows)
            groups = arrays.groups_from(masks, num_frames, (size[0], size[1]), self.background, self.name)
            labels = torch.from_numpy(whole_groups(groups, self.name).astype(np.int64))
            if tuple(size) != self.size:
                labels = F.interpolate(labels.double(), self.size, mode="nearest-exact").long()
            batch["groups"] = labels
        return batch


def pixels_of(images: Any, rows: np.ndarray, layout: str, channels: int, scale: float) -> np.ndarray:
    """Read some images of an array: (N, F, C, H, W) float32 in [0, 1]."""
    pixels = arrays.in_order(rows_of(images, rows), layout)[:, :, :channels]
    return pixels.astype(np.float32) / np.float32(scale)


def rows_of(array: Any, rows: np.ndarray) -> np.ndarray:
    """Read some rows of an array; HDF5 wants them in rising order, each once."""
    unique, inverse = np.unique(rows, return_inverse=True)
    return np.asarray(array[unique])[inverse]
