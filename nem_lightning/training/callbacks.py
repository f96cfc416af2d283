"""What happens around the training steps."""

import contextlib
import io
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.__version__ import version as lightning_version
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.loops.progress import _ProcessedTracker
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from nem_lightning import figures
from nem_lightning.datamodules.base import groups_of
from nem_lightning.errors import InputError, NonFiniteLoss, require
from nem_lightning.files import atomic_file
from nem_lightning.runs.hints import override
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule

log = logging.getLogger(__name__)


def require_known_monitors(callbacks: Mapping[str, pl.Callback], module: GroupingModule) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` if a callback watches a score that is not logged.

    Modules, models and callbacks of other packages may log scores of their own, so with them nothing is refused.

    Args:
        callbacks: by their names under ``callbacks`` in the configuration.
        module: what logs.
    """
    packages = {type(part).__module__.partition(".")[0] for part in (module, module.model, *callbacks.values())}
    if packages <= {"nem_lightning", "pytorch_lightning"}:
        known = module.logged_names
        for name, callback in callbacks.items():
            monitor = getattr(callback, "monitor", None)
            require(
                monitor in (None, "epoch", "step", *known),
                f"callbacks.{name}.monitor={monitor}: must be one of {', '.join(known)}",
            )


def require_results(trainer: pl.Trainer) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` if scores would be lost with the processes that find them."""
    require(
        not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher),
        "trainer.strategy: scores do not come back from processes that are spawned or forked; use ddp",
    )


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar without the run's version number, which takes a line in each epoch's."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class StopEarly(EarlyStopping):
    """Lightning's EarlyStopping, but a run that had stopped and is started again trains no further."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if 0 < self.wait_count >= self.patience:
            trainer.should_stop = True


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but a run that goes on in another folder takes the best checkpoint along."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the earlier run's best checkpoint to this run's folder, and remember its score.

        If the file is gone or cut short, the best is looked for anew.
        """
        if not state_dict["best_model_path"]:
            return
        best = Path(state_dict["best_model_path"])
        here = Path(self.dirpath or ".") / best.name
        best = here if here.is_file() else best  # taken along before, or the whole run was moved
        try:
            checkpoints.contents(best)
        except InputError as error:
            log.warning("%s; the best is looked for from here on", str(error).removeprefix("ckpt_path="))
            return
        if here.resolve() != best.resolve() and rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
            with atomic_file(here) as temporary:
                shutil.copyfile(best, temporary)
        score = state_dict["best_model_score"]
        state_dict = {
            **state_dict,
            "dirpath": self.dirpath,
            "best_model_path": str(here),
            "best_k_models": {str(here): score},
            "kth_best_model_path": str(here),
            "kth_value": score,
        }
        super().load_state_dict(state_dict)


class StopOnNonFiniteLoss(pl.Callback):
    """Stops a run whose loss or weights are no longer numbers, before a checkpoint of them is saved.

    The first such step is noted on the device; the note is read every ``log_every_n_steps`` steps and
    before each validation, since reading it waits for the device (on a CPU it costs nothing and is
    read every step). The weights are looked at before each validation and after each epoch.

    Raises:
        NonFiniteLoss: names the step.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = torch.full((), torch.inf, dtype=torch.float64, device=pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"]
        step = torch.where(loss.isfinite(), torch.inf, float(trainer.global_step))
        self._first = torch.minimum(self._first, step.to(self._first))
        every = trainer.log_every_n_steps  # 0: nothing is logged  # pyright: ignore[reportAttributeAccessIssue]
        if loss.device.type == "cpu" or (every and trainer.global_step % every == 0):
            self._check(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._check_all(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_all(trainer, pl_module)

    def _check_all(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer)
        if not torch.stack([weight.isfinite().all() for weight in pl_module.parameters()]).all():
            self._stop(trainer, "weights are", trainer.global_step)

    def _check(self, trainer: pl.Trainer) -> None:
        step = self._first.item()
        if step < torch.inf:
            self._stop(trainer, "loss is", int(step))

    def _stop(self, trainer: pl.Trainer, what: str, step: int) -> None:
        savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        kept = [saver.last_model_path or saver.best_model_path for saver in savers]
        raise NonFiniteLoss(
            f"the {what} not finite at step {step} (epoch {trainer.current_epoch}); last good checkpoint: "
            f"{(kept and kept[-1]) or 'none, no epoch was finished'}; try a lower optimizer.lr"
        )


class CheckpointOnInterrupt(pl.Callback):
    """Saves a checkpoint when training is interrupted (Ctrl-C, SIGTERM), so that nothing is lost.

    A run that goes on from the checkpoint ends with the weights of an undisturbed run, and its loggers get the same
    rows at the same steps. There are three exceptions, as Lightning does not save what they need. A run that a second
    Ctrl-C stops while gradients accumulate starts that sum anew. A run that a second Ctrl-C stops within a validation
    goes on after that validation. Modules of your own that draw from PyTorch's global generator (dropout) draw other
    numbers.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._goes_on = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.state.fn == TrainerFn.FITTING:
            batches = trainer.fit_loop.epoch_loop.batch_progress.current
            assert isinstance(batches, _ProcessedTracker)
            if batches.completed < batches.processed:  # stopped between a step and the row that Lightning logs of it
                trainer._logger_connector.update_train_step_metrics()
            trainer.save_checkpoint(self.path)
            folder = Path(trainer.default_root_dir)
            rank_zero_info(
                f"Interrupted at step {trainer.global_step}, saved {self.path}. To go on: the same command and "
                f"{override('hydra.run.dir', folder)} (of a sweep, {override('hydra.sweep.dir', folder.parent)})"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the rows of a run that goes on have the steps of an undisturbed run.

        Lightning counts the steps for its loggers apart, and counts one twice if a run was stopped within a step.
        """
        if self._goes_on and pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._goes_on = False

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Let the next validation start at its first batch.

        Within an epoch, Lightning would go on after the batches of the validation before, and score none:
        https://github.com/Lightning-AI/pytorch-lightning/issues/19549. Lightning has no public way to change this.

        Raises:
            RuntimeError: this version of Lightning saves its progress elsewhere.
        """
        if "loops" not in checkpoint:  # weights alone
            return
        self._goes_on = True
        try:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["current"]
        except KeyError as error:
            raise RuntimeError(
                f"Lightning {lightning_version} saves no {error} in its checkpoints; CheckpointOnInterrupt must be "
                "changed to start validations at their first batch (Lightning issue 19549)"
            ) from error
        for name in progress:
            progress[name] = 0


class LogGroupings(pl.Callback):
    """Draws the groupings of fixed validation images after each validation.

    They go to every logger that takes pictures (W&B, TensorBoard) as ``val/groupings``, one picture an
    image, at the step of the scores of the same validation. W&B gets sequences as the animation ``val/animation`` too.

    Args:
        num_images: how many images, the first of the validation set.
    """

    def __init__(self, num_images: int = 4) -> None:
        self.num_images = num_images
        self._batch: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch = {}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and not self._batch:
            self._batch = {name: value[: self.num_images].clone() for name, value in batch.items()}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
        if not loggers or not trainer.is_global_zero or trainer.sanity_checking:
            return
        assert isinstance(pl_module, GroupingModule)
        frames, groups = pl_module.frames(self._batch), groups_of(self._batch)
        with torch.no_grad():
            trajectory = pl_module(frames, generator=pl_module.generator("val", 0))
        pictures = [figures.groupings(frames, groups, trajectory, index) for index in range(len(frames))]
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # Lightning's, for all that is logged
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                with _surviving(logger):
                    panel = [wandb.Image(figure, caption=f"image {i}") for i, figure in enumerate(pictures)]
                    logged: dict[str, Any] = {"val/groupings": panel, "trainer/global_step": step}
                    if frames.shape[1] > 1:
                        gif = io.BytesIO()
                        figures.save_animation(figures.animation(frames, groups, trajectory), gif)
                        gif.seek(0)
                        logged["val/animation"] = wandb.Video(gif, format="gif")
                    logger.experiment.log(logged)
            else:
                for index, figure in enumerate(pictures):
                    logger.experiment.add_figure(f"val/groupings/{index}", figure, step)


class LogScoresByStep(pl.Callback):
    """Sends the test scores of each EM step to W&B, as ``by_step/ami_max`` and so on against ``by_step/step``: charts
    in which runs can be compared."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GroupingModule) and pl_module.test_scores is not None
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                with _surviving(logger):
                    for name in pl_module.test_scores.headings:  # by exact names: Lightning defines all others by "*"
                        logger.experiment.define_metric(f"by_step/{name}", step_metric="by_step/step")
                    for step, scores in enumerate(pl_module.test_scores.by_step, start=1):
                        row = {f"by_step/{name}": score for name, score in scores.items()}
                        logger.experiment.log({"by_step/step": step, **row})


def _surviving(logger: WandbLogger) -> contextlib.AbstractContextManager:
    """That of :class:`nem_lightning.training.loggers.WandbLogger`; Lightning's has none."""
    return getattr(logger, "surviving", contextlib.nullcontext)()
