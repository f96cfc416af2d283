"""The Shapes data set (Reichert & Serre 2013), as Greff et al. generate it."""

import logging
from pathlib import Path

import numpy as np
import torch

from nem_lightning.datamodules import published
from nem_lightning.datamodules.base import FramesDataModule, TensorFrames
from nem_lightning.errors import InputError, require, require_count

log = logging.getLogger(__name__)

TRIANGLE = ["     11     ", "    1111    ", "   111111   ", "  111  111  ", " 111    111 ", "1" * 12, "1" * 12]
SQUARE = ["1111111", "1111111", "11   11", "11   11", "11   11", "1111111", "1111111"]
MASKS = [np.array([list(row) for row in rows]) == "1" for rows in (SQUARE, TRIANGLE, TRIANGLE[::-1])]
"""The pixels of each shape."""

SPLITS = {"training": 50_000, "validation": 10_000, "test": 10_000, "single": 10_000}
"""The groups of the file, and how many images each has."""


def splits_for(train_on: str) -> dict[str, str]:
    """Give the name in :data:`SPLITS` of each stage.

    Raises:
        InputError: ``train_on`` is not "training" or "single".
    """
    if train_on not in ("training", "single"):
        raise InputError(f"train_on={train_on!r}: must be 'training' or 'single'")
    return {"train": train_on, "val": "validation", "test": "test"}


def generate(count: int, size: int, num_objects: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of overlapping shapes.

    For each object in turn, draw a template uniformly with replacement, then x, then y uniformly such
    that the object is fully inside. The image is the union of the objects.

    Args:
        count: N, how many images.
        size: height and width in pixels, at least 12.
        num_objects: shapes in each image, 1 to 254.
        rng: draws all random numbers.

    Returns:
        Images (N, size, size) uint8, 0 or 1; groups (N, size, size) uint8: k = 1, 2, ... for a
        pixel that only object k covers, 0 for a pixel that none or several cover.
    """
    pixels = [np.argwhere(mask) for mask in MASKS]
    extents = np.array([mask.shape for mask in MASKS])  # (3, 2): height, width
    covers = np.zeros((count, size, size), np.uint8)
    groups = np.zeros((count, size, size), np.uint8)
    for k in range(1, num_objects + 1):
        template = rng.integers(len(MASKS), size=count)
        x = rng.integers(size - extents[template, 1] + 1)
        y = rng.integers(size - extents[template, 0] + 1)
        for index, offsets in enumerate(pixels):
            (images,) = np.nonzero(template == index)
            at = images[:, None], y[images, None] + offsets[:, 0], x[images, None] + offsets[:, 1]
            covers[at] += 1
            groups[at] = k
    return (covers > 0).astype(np.uint8), np.where(covers == 1, groups, 0).astype(np.uint8)


def stills(images: np.ndarray, groups: np.ndarray) -> TensorFrames:
    """Give binary images (N, H, W) and their groups (N, H, W), integers, as frames with F = 1 and C = 1."""
    frames = torch.from_numpy(images.astype(np.uint8))[:, None, None]
    return TensorFrames(frames, torch.from_numpy(groups)[:, None])


class ShapesDataModule(FramesDataModule[TensorFrames]):
    """Binary images of three overlapping shapes each, generated from a seed.

    The set is kept in ``data_dir`` in the published HDF5 layout: groups ``training``, ``validation``,
    ``test`` (and ``single``: one shape per image), each with ``features`` and ``groups``, float32,
    (1, N, size, size, 1). If ``data_dir`` has a file ``shapes.h5``, such as the authors', it is read
    instead of generating the published set (28 x 28, three objects, ``generation_seed`` 0).

    Args:
        data_dir: folder of the file.
        batch_size: images in a batch, at least 1.
        size: height and width in pixels, at least 12 (28; Tagger's version has 20).
        num_objects: shapes in each image, at least 1.
        train_on: "training", or "single" for training on one shape per image.
        train_images: how many images to train on, the first of the set; None for all of them. If the file has
            fewer, the others are generated in memory at each start, 1.6 kB for an image of 28 x 28.
        generation_seed: seed of the generated images; each seed gives another set.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range, or a file that is no Shapes data set or is cut short.
    """

    binary = True

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 64,
        size: int = 28,
        num_objects: int = 3,
        train_on: str = "training",
        train_images: int | None = None,
        generation_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        require_count("size", size, minimum=12)  # the width of the triangle
        require_count("num_objects", num_objects)
        require(num_objects < 255, f"num_objects={num_objects}: must be less than 255")
        require_count("generation_seed", generation_seed, minimum=0)
        self.image_shape = (1, size, size)
        self.num_objects = num_objects
        self.generation_seed = generation_seed
        self.splits = splits_for(train_on)
        if train_images is not None:
            require_count("train_images", train_images)
        self.train_images = train_images
        self.path = self._path(Path(data_dir).expanduser())

    def _path(self, data_dir: Path) -> Path:
        size = self.image_shape[1]
        given = data_dir / "shapes.h5"
        if (size, self.num_objects, self.generation_seed) == (28, 3, 0) and given.exists():
            log.info("Shapes: reading %s instead of generating", given)
            return given
        return data_dir / f"shapes_{size}x{size}_{self.num_objects}objects_seed{self.generation_seed}.h5"

    def prepare_data(self) -> None:
        """Generate the file unless it exists. Several processes may do so at once."""
        if self.path.exists():
            return
        log.info("Shapes: generating %s", self.path)
        published.write(self.path, ((name, self._generated(name, count)) for name, count in SPLITS.items()))

    def _generated(self, name: str, count: int, *key: int) -> TensorFrames:
        """Generate images of a split. Each ``key`` gives other images; without one, they are those of the file."""
        rng = np.random.default_rng([self.generation_seed, list(SPLITS).index(name), *key])
        return stills(*generate(count, self.image_shape[1], 1 if name == "single" else self.num_objects, rng))

    def load(self, stage: str) -> TensorFrames:
        name = self.splits[stage]
        data = published.read(self.path, name, self.image_shape[1], binary=True)
        if stage != "train" or self.train_images is None:
            return data
        missing = self.train_images - len(data)
        if missing <= 0:
            return data.first(self.train_images)
        more = self._generated(name, missing, 1)
        return TensorFrames(torch.cat([data.frames, more.frames]), torch.cat([data.groups, more.groups]))
