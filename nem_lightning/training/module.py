"""The LightningModule: trains and scores any grouping model."""

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from nem_lightning.datamodules.base import Batch, frames_of, groups_of
from nem_lightning.errors import InputError, require_count, require_flag
from nem_lightning.models.grouping import Grouping, GroupingModel, TrainingLoss, frame_pair, groups_of_step
from nem_lightning.scores.base import Score
from nem_lightning.scores.collection import ScoreSet, TestScores

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Step = TypeVar("Step", bound=Callable)


def _eagerly(step: Step) -> Step:
    """Keep the compiler off a step. If ``torch.compile(module)`` is trained, the model chooses what is compiled."""
    return torch.compiler.disable(step)  # pyright: ignore[reportReturnType]


class GroupingModule(pl.LightningModule):
    """Trains a :class:`~nem_lightning.models.grouping.GroupingModel` and scores its groupings.

    Logs ``train/loss`` (what is minimised), and of the last step ``train/reconstruction_error`` and the numbers that
    the model reports; and ``val/`` and ``test/``: every score and every number of the last step. After a test,
    ``test_scores`` holds those of all steps; of sequences, their means over steps are logged as ``test_mean/``.

    All random numbers are drawn on the device from a generator that ``seed``, the stage, the epoch, the batch and the
    process determine. So a resumed run draws what an undisturbed one would have, and every validation sees the same
    draws. A resumed run takes the learning rate of its own settings, not the checkpoint's.

    Args:
        model: the model.
        scores: by name; each is a :class:`~nem_lightning.scores.base.Score`.
        optimizer: called with the parameters, gives the optimizer; None if the module is for scoring only, or the
            model has nothing to train.
        decay: whether the learning rate falls to 0 over the run, along half a cosine, step by step.
        seed: of the random numbers, at least 0.

    Raises:
        InputError: a setting of another kind, a score with the name of a number of the model, or an optimizer that
            does not take its settings.
    """

    def __init__(
        self,
        model: GroupingModel,
        scores: Mapping[str, Score] | None = None,
        optimizer: Optimizer | None = None,
        decay: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_count("seed", seed, minimum=0)
        require_flag("decay", decay)
        if optimizer is not None and (parameters := list(model.parameters())):
            try:
                optimizer(parameters)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"optimizer: {' '.join(str(error).split())}") from error
        self.model = model
        self.optimizer = optimizer
        self.decay = decay
        self.seed = seed
        # Lists hide the scores from the module: they are neither trained nor saved, and stay in double precision.
        self._val_sets = [ScoreSet(scores or {}, model)]
        self._test_sets = [ScoreSet(scores or {}, model) for _ in range(model.num_steps)]
        self.test_scores: TestScores | None = None
        self._learning_rates: list[float] | None = None  # a group of parameters each
        self._num_frames = 1

    @property
    def val_set(self) -> ScoreSet:
        """The scores of the last validation."""
        return self._val_sets[0]

    @property
    def logged_names(self) -> list[str]:
        """The names of all that is logged while training, such as ``val/ami_max``."""
        own = ("loss", "reconstruction_error")
        train = [*own, *(name for name in self.model.headings if name not in own)]
        return [f"val/{name}" for name in self.val_set.headings] + [f"train/{name}" for name in train]

    @property
    def has_weights(self) -> bool:
        """Whether there is something to train."""
        return any(weight.requires_grad for weight in self.parameters())

    # Random numbers and the learning rate

    def generator(self, stage: str, *batch: int) -> torch.Generator:
        """Give a new generator of the random numbers for one batch, on the module's device.

        Args:
            stage: "train", "val" or "test".
            batch: which one: its index, and while training the epoch before it.
        """
        key = f"{self.seed} {stage} {batch} {self.global_rank}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little") >> 1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and, if the learning rate decays, its schedule."""
        if self.optimizer is None:
            return None
        optimizer = self.optimizer(self.parameters())
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]
        if not self.decay:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._decayed)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _decayed(self, step: int) -> float:
        """The learning rate after so many steps, 1 at the start."""
        return (1 + math.cos(math.pi * min(1, step / self.trainer.estimated_stepping_batches))) / 2 if step else 1.0

    def on_train_start(self) -> None:
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if self._learning_rates is None or len(schedules) != int(self.decay):  # a subclass has its own
            return
        for schedule in schedules:
            schedule.base_lrs = [*self._learning_rates]
        decayed = self._decayed(schedules[0].last_epoch) if schedules else 1.0
        for group, rate in zip(self.trainer.optimizers[0].param_groups, self._learning_rates, strict=False):
            group["lr"] = rate * decayed

    # The stages

    def forward(self, frames: Tensor, generator: torch.Generator | None = None, num_starts: int = 1) -> list[Grouping]:
        """Group the pixels of a batch: (B, F, C, H, W) -> the groupings after steps 1 to T."""
        return self.model(frames, num_starts=num_starts, generator=generator)

    def check_data(self, datamodule: pl.LightningDataModule, stage: str) -> None:
        """Raise :class:`~nem_lightning.errors.InputError` if the model cannot take the first batch of the data.

        Args:
            datamodule: its data must be prepared. The data of the stage are set up.
            stage: "fit" or "test".
        """
        datamodule.setup(stage)
        loader = datamodule.train_dataloader() if stage == "fit" else datamodule.test_dataloader()
        for batch in itertools.islice(loader, 1):
            self.model.check_frames(self.frames(batch), self.model.num_steps)

    def on_fit_start(self) -> None:
        self.model.prepare_training(compiled=self._compiler_ctx is not None)

    def on_fit_end(self) -> None:
        self.model.finish_training()

    @_eagerly
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        frames = self.frames(batch)
        generator = self.generator("train", self.current_epoch, batch_idx)
        loss = self.model.training_loss(frames, epoch=self.current_epoch, generator=generator)
        every = self.trainer.log_every_n_steps  # 0: never  # pyright: ignore[reportAttributeAccessIssue]
        if every and (self.global_step + 1) % every == 0:  # the others' would not be written
            self._log_training(frames, loss)
        return loss.total

    @torch.no_grad()
    def _log_training(self, frames: Tensor, loss: TrainingLoss) -> None:
        target, last = frame_pair(frames, self.model.num_steps)[1], loss.last()
        values = {**self.model.report(target, last), "loss": loss.total.detach()}
        if last.reconstruction is not None:
            values["reconstruction_error"] = (target - last.reconstruction).square().mean()
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")

    def on_validation_epoch_start(self) -> None:
        self._start(self._val_sets)

    @_eagerly
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        generator = self.generator("val", batch_idx)
        groupings = self.model.groupings(self.frames(batch), num_starts=1, generator=generator)
        self._score(self.val_set, batch, self.model.num_steps, deque(groupings, maxlen=1).pop())

    def on_validation_epoch_end(self) -> None:
        for name, value in self.val_set.compute().items():
            self.log(f"val/{name}", value.float(), prog_bar=name == "ami_max", sync_dist=True)

    @_eagerly
    def predict_step(self, batch: Batch, batch_idx: int) -> Grouping:
        """Give the grouping of a batch after the last step."""
        groupings = self.model.groupings(self.frames(batch), generator=self.generator("test", batch_idx))
        return deque(groupings, maxlen=1).pop()

    def on_test_epoch_start(self) -> None:
        self._start(self._test_sets)

    @_eagerly
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._num_frames = self.frames(batch).shape[1]
        groupings = self.model.groupings(self.frames(batch), generator=self.generator("test", batch_idx))
        for step, (scores, grouping) in enumerate(zip(self._test_sets, groupings, strict=True), start=1):
            self._score(scores, batch, step, grouping)

    def on_test_epoch_end(self) -> None:
        by_step = [scores.compute() for scores in self._test_sets]
        images, unscored = self._test_sets[-1].images.compute()
        self.test_scores = TestScores(
            headings=self.val_set.headings,
            by_step=[{name: value.item() for name, value in step.items()} for step in by_step],
            num_images=int(images),
            unscored_images=int(unscored),
            num_frames=self._num_frames,
        )
        if self._num_frames > 1:
            self.log_dict({f"test_mean/{name}": value for name, value in self.test_scores.mean_over_steps.items()})
        self.log_dict({f"test/{name}": value.float() for name, value in by_step[-1].items()}, sync_dist=True)
        self.log("test/unscored_images", unscored.float())

    def _start(self, sets: Iterable[ScoreSet]) -> None:
        for scores in sets:
            scores.to(self.device)
            scores.reset()

    def _score(self, scores: ScoreSet, batch: Batch, step: int, grouping: Grouping) -> None:
        target = frame_pair(self.frames(batch), step)[1]
        scores.update(self.model, target, groups_of_step(groups_of(batch), step), grouping)

    def frames(self, batch: Batch) -> Tensor:
        """Give the frames of a batch in the precision of the weights."""
        frames = frames_of(batch)
        by_itself = torch.is_autocast_enabled(frames.device.type) or not frames.is_floating_point()
        weight = next(self.model.parameters(), None)
        return frames if by_itself or weight is None else frames.to(weight.dtype)
