"""The LightningModule: the recurrence and the loss, trained and scored."""

import hashlib
from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from nem_lightning.em import Iterate, NeuralEM
from nem_lightning.errors import require, require_count
from nem_lightning.losses import NeuralEMLoss
from nem_lightning.scores import StepScores, reconstruction_error


class NeuralEMModule(pl.LightningModule):
    """Trains a :class:`~nem_lightning.em.NeuralEM` and scores its groupings.

    Logs ``train/``: ``loss`` (what is minimised), and of the last step ``loss_intra``,
    ``loss_inter``, ``reconstruction_error``; and ``val/``, ``test/``: every score of
    :class:`~nem_lightning.scores.StepScores` of the last step. ``test_scores_by_step`` holds those of
    all steps after a test.

    The noise and the first responsibilities are drawn on the device from a generator that ``seed``, the
    stage, the step and the process determine. So a resumed run draws what an undisturbed one would
    have, and every validation sees the same draws.

    Args:
        em: the recurrence.
        loss: equation 5.
        optimizer: called with the parameters, gives the optimizer.
        corruption: noise on the M-step's input while training, from :mod:`nem_lightning.corruption`.
        num_components: K, at least 1.
        num_steps: T, at least 1.
        seed: of the noise and the first responsibilities, at least 0.

    Raises:
        InputError: K or T below 1, or a loss that does not fit T.
    """

    def __init__(
        self,
        em: NeuralEM,
        loss: NeuralEMLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        corruption: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        num_components: int = 3,
        num_steps: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_count("num_components", num_components)
        require_count("num_steps", num_steps)
        require_count("seed", seed, minimum=0)
        loss.weights(num_steps)  # raises where they do not fit
        self.em = em
        self.loss = loss
        self.optimizer = optimizer
        self.corruption = corruption
        self.num_components = num_components
        self.num_steps = num_steps
        self.seed = seed
        self.val_scores = StepScores()
        self.test_scores = nn.ModuleList(StepScores() for _ in range(num_steps))
        self.test_scores_by_step: list[dict[str, float]] = []
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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    def generator(self, stage: str, step: int) -> torch.Generator:
        """Random numbers for one batch of a stage, "train", "val", "test" or "predict", on the module's device."""
        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(self.device)
        key = f"{self.seed} {stage} {step} {self.global_rank}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return self._generator.manual_seed(int.from_bytes(digest, "little") >> 1)

    def forward(
        self, image: Tensor, corrupted: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Iterate]:
        """(B, C, H, W) -> the trajectory, T iterates."""
        return self.em(
            image,
            corrupted,
            num_components=self.num_components,
            num_steps=self.num_steps,
            generator=generator,
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        image = batch["image"]
        generator = self.generator("train", self.global_step)
        corrupted = self.corruption(image, generator) if self.corruption is not None else None
        trajectory = self(image, corrupted, generator)
        loss, last = self.loss(image, trajectory)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict(
            {
                "train/loss_intra": last.intra.detach(),
                "train/loss_inter": last.inter.detach(),
                "train/reconstruction_error": reconstruction_error(image, trajectory[-1]).detach(),
            }
        )
        return loss

    def on_validation_epoch_start(self) -> None:
        self.val_scores.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        image = batch["image"]
        last = self(image, generator=self.generator("val", batch_idx))[-1]
        self.val_scores.update(self.em, image, batch["groups"], last, self.loss.of_step(image, last))

    def on_validation_epoch_end(self) -> None:
        scores = self.val_scores.compute()
        for name, value in scores.items():
            self.log(f"val/{name}", value.float(), prog_bar=name == "ami_max")

    def on_test_epoch_start(self) -> None:
        for scores in self.test_scores:
            scores.reset()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        image = batch["image"]
        trajectory = self(image, generator=self.generator("test", batch_idx))
        for scores, iterate in zip(self.test_scores, trajectory, strict=True):
            scores.update(self.em, image, batch["groups"], iterate, self.loss.of_step(image, iterate))

    def on_test_epoch_end(self) -> None:
        by_step = [scores.compute() for scores in self.test_scores]
        self.test_scores_by_step = [{name: value.item() for name, value in step.items()} for step in by_step]
        self.log_dict({f"test/{name}": value.float() for name, value in by_step[-1].items()})
        self.log("test/unscored_images", self.test_scores[-1].unscored.float())
