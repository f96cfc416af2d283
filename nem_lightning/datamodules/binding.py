"""The other data sets of Reconstruction Clustering: Corners, Bars, MNIST + shape and Multi-MNIST.

Their images are binary and generated from a seed. The published files are not public, so these follow the published
words. An image is the union of its objects, and is drawn when it is asked for.

Shapes: N images, O objects in each.
"""

import abc
from pathlib import Path

import numpy as np

from nem_lightning.datamodules import mnist
from nem_lightning.datamodules.base import FramesDataModule
from nem_lightning.datamodules.flying import Templates, Trajectories
from nem_lightning.datamodules.shapes import MASKS, SPLITS, splits_for
from nem_lightning.errors import require_count, require_flag


class BindingDataModule(FramesDataModule[Trajectories]):
    """Binary images of several objects: 50,000 to train on, 10,000 to validate on and 10,000 to test.

    A subclass says what the objects look like, and which of them are in an image.

    Args:
        batch_size: images in a batch, at least 1.
        train_on: "training", or "single" for training on 10,000 images of one object each.
        generation_seed: seed of the generated images; each seed gives another set.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range.

    Source: Greff, Srivastava and Schmidhuber 2015, Binding via Reconstruction Clustering, section 4.1.
    """

    binary = True

    def __init__(
        self, batch_size: int = 64, train_on: str = "training", generation_seed: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, seed)
        require_count("generation_seed", generation_seed, minimum=0)
        self.generation_seed = generation_seed
        self.splits = splits_for(train_on)

    @abc.abstractmethod
    def templates(self, stage: str) -> Templates:
        """Give what the objects of a stage look like."""

    @abc.abstractmethod
    def kinds(self, rng: np.random.Generator, count: int, single: bool, templates: int) -> np.ndarray:
        """Draw which template each object has: (N, O).

        Args:
            rng: draws all random numbers.
            count: N.
            single: whether images have one object each.
            templates: how many templates there are.
        """

    def positions(self, rng: np.random.Generator, room: np.ndarray) -> np.ndarray:
        """Draw the row and column of each object's upper left corner, uniformly such that it is fully inside.

        Args:
            rng: draws all random numbers.
            room: (N, O, 2), the largest row and column.
        """
        return rng.integers(room + 1)

    def load(self, stage: str) -> Trajectories:
        name, templates = self.splits[stage], self.templates(stage)
        rng = np.random.default_rng([self.generation_seed, list(SPLITS).index(name)])
        kinds = self.kinds(rng, SPLITS[name], name == "single", len(templates.pixels))
        positions = self.positions(rng, self.image_shape[1:] - templates.extents[kinds])
        stills = np.ascontiguousarray(positions[:, None].astype(np.uint8))  # (N, 1, O, 2)
        return Trajectories(templates, kinds, stills, self.image_shape[1], self.device())


class CornersDataModule(BindingDataModule):
    """Corners, 28 x 28: a square of 20 x 20 of which only the four corners are seen, and four corners anywhere.

    A corner has two arms of 5 pixels, two pixels thick. Each of the four corners has one of four directions. Half of
    the images of single objects have a square, half have a corner.
    """

    image_shape = (1, 28, 28)

    def templates(self, stage: str) -> Templates:
        to_border = np.minimum(np.arange(20), np.arange(20)[::-1])
        row, column = np.meshgrid(to_border, to_border, indexing="ij")
        square = (row < 5) & (column < 5) & ((row < 2) | (column < 2))
        corner = square[:5, :5]
        return Templates.of([square, corner, corner[:, ::-1], corner[::-1], corner[::-1, ::-1]])

    def kinds(self, rng: np.random.Generator, count: int, single: bool, templates: int) -> np.ndarray:
        corners = rng.integers(1, 5, size=(count, 4))
        square = np.zeros((count, 1), int)
        if single:
            return np.where(rng.random((count, 1)) < 0.5, square, corners[:, :1])
        return np.concatenate([square, corners], 1)


class BarsDataModule(BindingDataModule):
    """Bars, 20 x 20: six rows and six columns at distinct places; each is an object."""

    image_shape = (1, 20, 20)

    def templates(self, stage: str) -> Templates:
        return Templates.of([np.ones((1, 20), bool), np.ones((20, 1), bool)])

    def kinds(self, rng: np.random.Generator, count: int, single: bool, templates: int) -> np.ndarray:
        return rng.integers(2, size=(count, 1)) if single else np.tile([0, 1], (count, 6))

    def positions(self, rng: np.random.Generator, room: np.ndarray) -> np.ndarray:
        places = rng.permuted(np.tile(np.arange(20), (len(room), 2, 1)), axis=2)  # of rows, of columns: (N, 2, 20)
        in_turn = places.swapaxes(1, 2).reshape(len(room), 40)[:, : room.shape[1]]  # row, column, row, ...
        return np.where(room > 0, in_turn[..., None], 0)


class DigitsDataModule(BindingDataModule):
    """Images with MNIST's digits: training, validation and test images draw from different digits.

    Args:
        mnist_dir: the folder of MNIST's gzipped IDX files.
        download: whether to fetch them if they are not there.
        batch_size: images in a batch, at least 1.
        train_on: "training", or "single" for training on 10,000 images of one object each.
        generation_seed: seed of the generated images; each seed gives another set.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range, or MNIST's files missing or damaged.
    """

    def __init__(
        self,
        mnist_dir: str,
        download: bool = False,
        batch_size: int = 64,
        train_on: str = "training",
        generation_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, train_on, generation_seed, seed)
        require_flag("download", download)
        self.mnist_dir = Path(mnist_dir).expanduser()
        self.download = download

    def prepare_data(self) -> None:
        """Fetch MNIST if asked to, and check its files."""
        mnist.prepare(self.mnist_dir, self.download)

    def digits(self, stage: str) -> np.ndarray:
        """Give the digits of a stage, (N, 28, 28) boolean: pixels of at least one half."""
        return mnist.read_split(self.mnist_dir, stage) > 127


class MNISTShapeDataModule(DigitsDataModule):
    """MNIST + shape, 28 x 28: a digit in its place in MNIST, and a shape of Shapes anywhere.

    Half of the images of single objects have a digit, half have a shape.
    """

    image_shape = (1, 28, 28)

    def templates(self, stage: str) -> Templates:
        return Templates.of([*MASKS, *self.digits(stage)])

    def kinds(self, rng: np.random.Generator, count: int, single: bool, templates: int) -> np.ndarray:
        a_shape, digit = rng.integers(3, size=count), rng.integers(3, templates, size=count)
        if single:
            return np.where(rng.random(count) < 0.5, digit, a_shape)[:, None]
        return np.stack([digit, a_shape], 1)


class MultiMNISTDataModule(DigitsDataModule):
    """Multi-MNIST, 48 x 48: three digits anywhere, tightly cropped."""

    image_shape = (1, 48, 48)

    def templates(self, stage: str) -> Templates:
        return Templates.of([_cropped(digit) for digit in self.digits(stage)])

    def kinds(self, rng: np.random.Generator, count: int, single: bool, templates: int) -> np.ndarray:
        return rng.integers(templates, size=(count, 1 if single else 3))


def _cropped(mask: np.ndarray) -> np.ndarray:
    """Leave out the empty rows and columns at the borders."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
