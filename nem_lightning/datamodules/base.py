"""What the data sets share: images held in memory, batches cut from them as tensors."""

import itertools
from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from nem_lightning.errors import require_count

STAGES = ("train", "val", "test")


class TensorImages(Dataset):
    """Images and their groups, in memory; a batch is one indexing of each tensor.

    Args:
        images: (N, C, H, W), uint8.
        groups: (N, H, W), uint8; 0 is not scored.
        scale: what a pixel is divided by when it becomes a float (1 for binary images, 255 for colour).
    """

    def __init__(self, images: Tensor, groups: Tensor, scale: int = 1) -> None:
        self.images, self.groups, self.scale = images, groups, scale

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``image`` (C, H, W) float32 and ``groups`` (H, W) int64."""
        return {name: batch[0] for name, batch in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """``image`` (B, C, H, W) float32 and ``groups`` (B, H, W) int64. A DataLoader calls this for a batch."""
        indices = torch.as_tensor(indices)
        return {"image": self.images[indices].float() / self.scale, "groups": self.groups[indices].long()}


class ResumableLoader(DataLoader):
    """A training loader that Lightning can stop within an epoch and go on with, at the batch that is next."""

    trainer: pl.Trainer | None = None
    _skip = 0

    def state_dict(self) -> dict[str, int]:
        """How many batches of this epoch were trained on; Lightning saves it with a checkpoint."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"batches": progress.processed % self.trainer.num_training_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out that many batches, once."""
        self._skip = state["batches"]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        skip, self._skip = self._skip, 0
        return itertools.islice(super().__iter__(), skip, None)


class ImagesDataModule(pl.LightningDataModule):
    """Loaders over three :class:`TensorImages`; a subclass reads them in :meth:`load`.

    Training batches come in an order that depends on ``seed`` and the epoch alone, so a resumed run
    sees what an undisturbed one would have. Validation and test images come in order, each exactly
    once, over however many processes.

    Attributes:
        image_shape: (C, H, W).
        binary: whether pixels are 0 or 1 (Bernoulli), or real values in [0, 1].
    """

    image_shape: tuple[int, int, int]
    binary: bool

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        require_count("batch_size", batch_size)
        self.batch_size = batch_size
        self.seed = seed
        self.images: dict[str, TensorImages] = {}

    def load(self, stage: str) -> TensorImages:
        """The images of a stage, "train", "val" or "test"."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read what ``stage`` ("fit", "validate", "test" or None for all) needs into memory, once."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, STAGES)
        for name in wanted:
            self._load_once(name)

    def _load_once(self, stage: str) -> TensorImages:
        if stage not in self.images:
            self.images[stage] = self.load(stage)
        return self.images[stage]

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def train_dataloader(self) -> DataLoader:
        world, rank = self._processes()
        sampler = DistributedSampler(self.images["train"], world, rank, shuffle=True, seed=self.seed)
        loader = self._loader("train", sampler, ResumableLoader)
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> DataLoader:
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        return self.eval_dataloader("test")

    def eval_dataloader(self, stage: str) -> DataLoader:
        """The images of any stage in their order, each once."""
        world, rank = self._processes()
        return self._loader(stage, UnrepeatedDistributedSampler(self._load_once(stage), world, rank, shuffle=False))

    def _loader(self, stage: str, sampler: DistributedSampler, loader: type[DataLoader] = DataLoader) -> DataLoader:
        pin = torch.cuda.is_available()
        return loader(self.images[stage], self.batch_size, sampler=sampler, collate_fn=_as_it_comes, pin_memory=pin)


def _as_it_comes(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
