"""The LightningModule: the recurrence and the loss, trained and scored."""

import contextlib
import functools
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from nem_lightning.errors import InputError, require, require_count, require_flag
from nem_lightning.models.corruption import BitFlip
from nem_lightning.models.em import Iterate, NeuralEM
from nem_lightning.models.fast_path import FastPath, TrainingLoss
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.scores.collection import StepScores, reconstruction_error

TRAINING = ("loss", "loss_intra", "loss_inter", "reconstruction_error")
"""What is logged while training, after ``train/``."""


class NeuralEMModule(pl.LightningModule):
    """Trains a :class:`~nem_lightning.models.em.NeuralEM` and scores its groupings.

    Logs ``train/``: ``loss`` (what is minimised), and of the last step ``loss_intra``,
    ``loss_inter``, ``reconstruction_error``; and ``val/``, ``test/``: every score of
    :class:`~nem_lightning.scores.collection.StepScores` of the last step. After a test, ``test_scores_by_step`` holds
    those of all steps, and ``test_images`` says of how many images.

    The noise and the first responsibilities are drawn on the device from a generator that ``seed``, the
    stage, the epoch, the batch and the process determine. So a resumed run draws what an undisturbed one
    would have, and every validation sees the same draws. A resumed run takes the learning rate of its own
    settings, not the checkpoint's.

    Args:
        em: the recurrence.
        loss: equation 5.
        optimizer: called with the parameters, gives the optimizer.
        corruption: noise on the M-step's input while training, from :mod:`nem_lightning.models.corruption`.
        num_components: K, at least 1.
        num_steps: T, at least 1.
        num_starts: from how many first responsibilities EM starts in tests and pictures, at least 1; of each image
            the trajectory that ends with the lowest :func:`~nem_lightning.models.starts.energy` is kept. Training and
            validation start once. More than 1 for Bernoulli pixels only.
        detached_epochs: for so many epochs at the start no gradients flow through gamma, at least 0; RNN-EM then
            finds objects sooner, but would lose them again without those gradients.
        decay: whether the learning rate falls to 0 over the run, along half a cosine, step by step.
        seed: of the noise and the first responsibilities, at least 0.

    Raises:
        InputError: K, T or the number of starts below 1, several starts with Gaussian pixels, a negative number of
            epochs, a loss that does not fit T, or an optimizer that does not take its settings.
    """

    def __init__(
        self,
        em: NeuralEM,
        loss: NeuralEMLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        corruption: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        num_components: int = 3,
        num_steps: int = 10,
        num_starts: int = 1,
        detached_epochs: int = 0,
        decay: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_count("num_components", num_components)
        require_count("num_steps", num_steps)
        em.require_starts(num_starts)
        require_count("detached_epochs", detached_epochs, minimum=0)
        require_count("seed", seed, minimum=0)
        require_flag("decay", decay)
        try:
            optimizer(em.parameters())
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"optimizer: {' '.join(str(error).split())}") from error
        try:
            loss.weights(num_steps)
        except InputError as error:
            raise InputError(f"loss.{error}") from None
        self.em = em
        self.loss = loss
        self.fast_path = FastPath()
        self.optimizer = optimizer
        self.corruption = corruption
        self.num_components = num_components
        self.num_steps = num_steps
        self.num_starts = num_starts
        self.detached_epochs = detached_epochs
        self.decay = decay
        self.seed = seed
        self.val_scores = StepScores()
        self.test_scores = nn.ModuleList(StepScores() for _ in range(num_steps))
        self.test_scores_by_step: list[dict[str, float]] = []
        self.test_images = 0
        self._learning_rates: list[float] | None = None  # a group of parameters each
        self._generator: torch.Generator | None = None

    def check_images(self, datamodule) -> None:
        """Raise :class:`~nem_lightning.errors.InputError` where this model cannot take these images.

        Args:
            datamodule: with ``image_shape`` (C, H, W) and ``binary``, as in :mod:`nem_lightning.datamodules`.
        """
        expected, given = tuple(self.em.m_step.image_shape), tuple(datamodule.image_shape)
        require(
            expected == given,
            f"data: images are {given} (channels, height, width), but this model takes {expected}; choose the data "
            "it was built for, or its size",
        )
        for name, likelihood in (("em", self.em.likelihood), ("loss", self.loss.likelihood)):
            require(
                datamodule.binary or not likelihood.binary,
                f"model.{name}.likelihood: Bernoulli pixels must be 0 or 1, but {type(datamodule).__name__} gives "
                "real values in [0, 1]; use the Gaussian",
            )
        own, of_loss = (type(part.likelihood).__name__ for part in (self.em, self.loss))
        require(own == of_loss, f"model.loss.likelihood: is {of_loss}, but model.em.likelihood {own}; must be the same")
        require(
            datamodule.binary or not isinstance(self.corruption, BitFlip),
            f"model.corruption: bit flips are for pixels of 0 and 1, but {type(datamodule).__name__} gives real values "
            "in [0, 1]; use masked_uniform",
        )

    def configure_optimizers(self) -> torch.optim.Optimizer | dict:
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
            schedule.base_lrs = self._learning_rates
        decayed = self._decayed(schedules[0].last_epoch) if schedules else 1.0
        for group, rate in zip(self.trainer.optimizers[0].param_groups, self._learning_rates, strict=False):
            group["lr"] = rate * decayed

    def generator(self, stage: str, *batch: int) -> torch.Generator:
        """Random numbers for one batch, on the module's device.

        Args:
            stage: "train", "val" or "test".
            batch: which one: its index, and while training the epoch before it.
        """
        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(self.device)
        key = f"{self.seed} {stage} {batch} {self.global_rank}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return self._generator.manual_seed(int.from_bytes(digest, "little") >> 1)

    def forward(
        self,
        image: Tensor,
        corrupted: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_starts: int = 1,
    ) -> list[Iterate]:
        """(B, C, H, W) -> the trajectory, T iterates; of several starts the one of lowest energy."""
        return self.em(image, corrupted, **self._sizes, num_starts=num_starts, generator=generator)

    @property
    def _is_unrolled_by_em(self) -> bool:
        """Whether :meth:`forward` is the one above: what it does can then be had quicker."""
        return getattr(self.forward, "__func__", None) is NeuralEMModule.forward

    @property
    def _sizes(self) -> dict[str, int]:
        return {"num_components": self.num_components, "num_steps": self.num_steps}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        image = batch["image"]
        generator = self.generator("train", self.current_epoch, batch_idx)
        corrupted = self.corruption(image, generator) if self.corruption is not None else None
        with self._detached_at_first():
            loss = self.training_loss(image, corrupted, generator)
        every = self.trainer.log_every_n_steps  # 0: never
        if every and (self.global_step + 1) % every == 0:  # the others' would not be written
            self._log_training(image, loss)
        return loss.total

    @contextlib.contextmanager
    def _detached_at_first(self) -> Iterator[None]:
        em, differentiate = self.em, self.em.differentiate_responsibilities
        em.differentiate_responsibilities = differentiate and self.current_epoch >= self.detached_epochs
        try:
            yield
        finally:
            em.differentiate_responsibilities = differentiate

    @torch.no_grad()
    def _log_training(self, image: Tensor, loss: TrainingLoss) -> None:
        last = self.em.explain(image, loss.state, loss.params)
        of_last = self.loss.of_step(image, last)
        values = (loss.total.detach(), of_last.intra, of_last.inter, reconstruction_error(image, last))
        for name, value in zip(TRAINING, values, strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss")

    def training_loss(
        self, image: Tensor, corrupted: Tensor | None = None, generator: torch.Generator | None = None
    ) -> TrainingLoss:
        """What :meth:`forward`, then the loss give, by the quicker way where there is one: (B, C, H, W)."""
        if self._is_unrolled_by_em and self.fast_path.applies(self.em, self.loss, image, corrupted):
            return self.fast_path(self.em, self.loss, image, corrupted, **self._sizes, generator=generator)
        trajectory = self(image, corrupted, generator)
        last = trajectory[-1]
        return TrainingLoss(self.loss(image, trajectory), last.state.detach(), last.params.detach())

    def on_validation_epoch_start(self) -> None:
        self.val_scores.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        image = batch["image"]
        unroll = functools.partial(self.em.iterates, **self._sizes) if self._is_unrolled_by_em else self
        last = deque(unroll(image, generator=self.generator("val", batch_idx)), maxlen=1).pop()
        self.val_scores.update(self.em, image, batch["groups"], last, self.loss.of_step(image, last))

    def on_validation_epoch_end(self) -> None:
        scores = self.val_scores.compute()
        for name, value in scores.items():
            self.log(f"val/{name}", value.float(), prog_bar=name == "ami_max", sync_dist=True)

    def on_test_epoch_start(self) -> None:
        for scores in self.test_scores:
            scores.reset()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        image = batch["image"]
        trajectory = self(image, generator=self.generator("test", batch_idx), num_starts=self.num_starts)
        for scores, iterate in zip(self.test_scores, trajectory, strict=True):
            scores.update(self.em, image, batch["groups"], iterate, self.loss.of_step(image, iterate))

    def on_test_epoch_end(self) -> None:
        by_step = [scores.compute() for scores in self.test_scores]
        self.test_scores_by_step = [{name: value.item() for name, value in step.items()} for step in by_step]
        self.log_dict({f"test/{name}": value.float() for name, value in by_step[-1].items()}, sync_dist=True)
        own = self.test_scores[-1]
        scored, unscored = self.trainer.strategy.reduce(torch.stack([own.scored, own.unscored]), reduce_op="sum")
        self.test_images = int(scored + unscored)
        self.log("test/unscored_images", unscored.float())
