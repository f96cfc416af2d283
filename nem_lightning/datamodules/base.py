"""What the data sets share: frames in memory, and batches of them as tensors.

Shapes: N images or sequences, B of them in a batch, F frames, C channels, H by W pixels. A still image has F = 1.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.progress import _ProcessedTracker
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from nem_lightning.errors import InputError, require, require_count

STAGES = ("train", "val", "test")
Held = TypeVar("Held", bound="Frames")
"""The class of the images or sequences that a data module keeps of each stage."""
Batch = dict[str, Tensor]
"""``frames`` (B, F, C, H, W) float32 and ``groups`` (B, F, H, W) int64."""


class Frames(Dataset[Batch]):
    """Images or sequences and their groups, given in batches."""

    device = torch.device("cpu")
    """Where the batches are."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        """Give ``frames`` (F, C, H, W) float32 and ``groups`` (F, H, W) int64."""
        return {name: batch[0] for name, batch in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Give a batch: ``frames`` (B, F, C, H, W) and ``groups`` (B, F, H, W). A DataLoader calls this."""
        raise NotImplementedError


class TensorFrames(Frames):
    """Images or sequences and their groups, in memory; a batch is made by indexing each tensor once.

    Args:
        frames: (N, F, C, H, W), of any number type.
        groups: (N, F, H, W), integers: objects are 1, 2, ...; 0 is not scored, and -1 is void.
        scale: divisor of the pixels when they become floats (1 for binary images, 255 for colour).

    Raises:
        InputError: shapes that do not match.
    """

    def __init__(self, frames: Tensor, groups: Tensor, scale: float = 1) -> None:
        fits = frames.dim() == 5 and groups.shape == (*frames.shape[:2], *frames.shape[3:])
        require(
            fits,
            f"frames are {tuple(frames.shape)} and groups {tuple(groups.shape)}: must be (N, F, C, H, W) and "
            "(N, F, H, W)",
        )
        self.frames, self.groups, self.scale = frames, groups, scale

    def __len__(self) -> int:
        return len(self.frames)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Give a batch. A DataLoader calls this."""
        chosen = torch.as_tensor(indices)
        return {"frames": self.frames[chosen].float() / self.scale, "groups": self.groups[chosen].long()}

    def first(self, count: int | None) -> "TensorFrames":
        """Give the first ``count`` images or sequences; all if it is None."""
        return TensorFrames(self.frames[:count], self.groups[:count], self.scale)


def frames_of(batch: Batch) -> Tensor:
    """Give the frames of a batch, (B, F, C, H, W).

    Raises:
        InputError: the batch has none.
    """
    if not isinstance(batch, Mapping) or "frames" not in batch:
        raise InputError("data: a batch must be a dictionary with frames (B, F, C, H, W)")
    return batch["frames"]


def groups_of(batch: Batch) -> Tensor:
    """Give the true groups of a batch, (B, F, H, W); if it has none, all are 0, which no score counts."""
    if "groups" in batch:
        return batch["groups"]
    frames = frames_of(batch)
    return frames.new_zeros(*frames.shape[:2], *frames.shape[3:], dtype=torch.long)


def whole_groups(groups: np.ndarray, name: str) -> np.ndarray:
    """Convert groups from a file to the smallest integer type that holds them: uint8 or int16.

    Args:
        groups: any shape, numbers: objects are 1, 2, ..., 0 is not scored, and -1 is void.
        name: the file's name, for errors.

    Raises:
        InputError: values that are not integers from -1 to 32,767.
    """
    limits = np.iinfo(np.int16)
    fits = bool(np.isfinite(groups).all() and (groups >= -1).all() and (groups <= limits.max).all())
    require(
        fits and bool((groups == np.floor(groups)).all()),
        f"{name} has groups other than integers from -1 (void) to {limits.max}; objects are 1, 2, ..., and 0 is not "
        "scored",
    )
    small = groups.size == 0 or (groups.min() >= 0 and groups.max() <= np.iinfo(np.uint8).max)
    return groups.astype(np.uint8 if small else np.int16)


class ResumableLoader(DataLoader[Batch]):
    """A training loader that Lightning can stop within an epoch and resume at the next batch."""

    trainer: pl.Trainer | None = None
    _skip = 0

    def state_dict(self) -> dict[str, int]:
        """Say how many batches of this epoch were trained on. Lightning saves it with a checkpoint."""
        assert self.trainer is not None  # Lightning calls this while it trains
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        assert isinstance(progress, _ProcessedTracker)
        return {"batches": progress.processed % int(self.trainer.num_training_batches)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip that many batches, once."""
        self._skip = state["batches"]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader declares its own iterator class
        skip, self._skip = self._skip, 0
        return itertools.islice(super().__iter__(), skip, None)


class EachOnce(DistributedSampler):
    """A sampler that gives every item in order, each on exactly one process.

    It is a DistributedSampler, because Lightning would wrap any other sampler in one, and leave out items.

    Args:
        count: how many items there are.
        world: how many processes.
        rank: of this process.
    """

    def __init__(self, count: int, world: int, rank: int) -> None:
        super().__init__(range(count), world, rank, shuffle=False)  # pyright: ignore[reportArgumentType]
        self.indices = range(rank, count, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Shuffled(DistributedSampler):
    """A sampler that gives every item several times an epoch, in an order that is drawn anew in each epoch.

    Args:
        count: how many items there are.
        passes: how many times each is given.
        world: how many processes.
        rank: of this process.
        seed: of the order.
    """

    def __init__(self, count: int, passes: int, world: int, rank: int, seed: int) -> None:
        each = range(count * passes)
        super().__init__(each, world, rank, shuffle=True, seed=seed)  # pyright: ignore[reportArgumentType]
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return (index % self.count for index in super().__iter__())


class FramesDataModule(pl.LightningDataModule, Generic[Held]):
    """Loaders over three :class:`Frames`. A subclass reads them in :meth:`load`.

    The order of training batches depends only on ``seed`` and the epoch, so a resumed run sees the same
    batches as an uninterrupted one. Validation and test images come in order, each exactly once, for any
    number of processes.

    Attributes:
        image_shape: (C, H, W), known after construction.
        binary: whether pixels are 0 or 1 (Bernoulli), or real values in [0, 1]; known after construction.
    """

    image_shape: tuple[int, int, int]
    binary: bool
    test_stage: str = "test"
    """The stage whose images are tested."""

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        require_count("batch_size", batch_size)
        require_count("seed", seed, minimum=0)
        self.batch_size = batch_size
        self.seed = seed
        self.stages: dict[str, Held] = {}

    def load(self, stage: str) -> Held:
        """Read the images of a stage, "train", "val" or "test"."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read into memory, once, what ``stage`` ("fit", "validate", "test", "predict" or None for all) needs."""
        of_test = (self.test_stage,)
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": of_test, "predict": of_test}
        for name in wanted.get(stage or "", STAGES):
            self._load_once(name)

    def _load_once(self, stage: str) -> Held:
        if stage not in self.stages:
            self.stages[stage] = self.load(stage)
        return self.stages[stage]

    def passes(self, count: int) -> int:
        """Say how many times an epoch shows each of ``count`` training images."""
        return 1

    def device(self) -> torch.device:
        """Give the device of the training, on which batches may be drawn; the CPU without a Trainer."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give the training batches, in a different order in each epoch."""
        world, rank = self._processes()
        count = len(self._load_once("train"))
        sampler = Shuffled(count, self.passes(count), world, rank, self.seed)
        loader = self._loader("train", sampler, ResumableLoader)
        assert isinstance(loader, ResumableLoader)
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> DataLoader[Batch]:
        """Give the validation batches."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Give the test batches."""
        return self.eval_dataloader(self.test_stage)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Give the test batches."""
        return self.test_dataloader()

    def eval_dataloader(self, stage: str) -> DataLoader[Batch]:
        """Give the images of any stage in order, each once."""
        world, rank = self._processes()
        return self._loader(stage, EachOnce(len(self._load_once(stage)), world, rank))

    def _loader(
        self, stage: str, sampler: Sampler[int], loader: type[DataLoader[Batch]] = DataLoader
    ) -> DataLoader[Batch]:
        pin = torch.cuda.is_available() and self.stages[stage].device.type == "cpu"
        arguments = {"batch_size": self.batch_size, "collate_fn": _as_it_comes, "pin_memory": pin}
        return loader(self.stages[stage], sampler=sampler, **arguments)  # Lightning re-creates it by keywords


def _as_it_comes(batch: Any) -> Any:
    return batch
