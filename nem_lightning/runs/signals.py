"""How a run stops in time when a cluster asks it to, so that it can go on later."""

import logging
import os
import signal
import subprocess
import threading
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TIME_LIMIT = (signal.SIGUSR1, signal.SIGUSR2)


class Preempted(SIGTERMException):
    """A signal asked the run to stop.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"received {signal.Signals(number).name}")
        self.number = number


class StopOnSignal(pl.Callback):
    """Stops training after the step in which SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C comes, in all processes alike.

    It replaces Lightning's own handlers, which save within a step and let the processes of a DDP run stop at different
    steps. If a signal comes just before or within a validation, or while gradients accumulate, the run stops after the
    next step, so that it has the scores and weights of an undisturbed one when it goes on. Several processes look for
    a signal every ``log_every_n_steps`` steps (every 50 if nothing is logged), as they have to agree.

    Raises:
        Preempted: for :class:`~nem_lightning.training.callbacks.CheckpointOnInterrupt`, and :func:`exit_after_signal`.
        KeyboardInterrupt: Ctrl-C came twice; the run stops at once.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._received = 0
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # Lightning puts the earlier handlers back when training ends
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._received == number:
                raise KeyboardInterrupt
            rank_zero_info("Stopping after this step, or after a validation and one step; Ctrl-C again stops at once.")
        self._received = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = trainer.log_every_n_steps or 50  # 0: nothing is logged  # pyright: ignore[reportAttributeAccessIssue]
        batches = trainer.accumulate_grad_batches
        looks = trainer.world_size == 1 or batch_idx // batches % every == 0
        accumulates = (batch_idx + 1) % batches and not trainer.is_last_batch
        if looks and not accumulates and not self._validation_comes_next(trainer, batch_idx):
            self._stop_together(trainer)

    @staticmethod
    def _validation_comes_next(trainer: pl.Trainer, batch_idx: int) -> bool:
        every = trainer.val_check_batch  # None if the clock says so
        done = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
        return every is not None and (done + 1) % every == 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_together(trainer)

    def _stop_together(self, trainer: pl.Trainer) -> None:
        received = self._received
        if trainer.world_size > 1:
            device = trainer.strategy.root_device
            received = int(trainer.strategy.reduce(torch.tensor(received, device=device), reduce_op="max"))
        if received:
            raise Preempted(received)


def exit_after_signal(stop: SIGTERMException) -> NoReturn:
    """End the process after a signal; at the end of a time limit (SIGUSR1, SIGUSR2), have SLURM start the job again.

    SLURM itself starts a job again that it preempts (SIGTERM).

    Raises:
        SystemExit: in all other cases than these two.
        CalledProcessError: SLURM does not take the job again.
        UncompletedJobError: submitit has started the job again ``max_num_timeout`` times.
    """
    number = stop.number if isinstance(stop, Preempted) else signal.SIGTERM
    if number in TIME_LIMIT:
        of_submitit = signal.getsignal(number)
        if callable(of_submitit):
            of_submitit(number, None)  # counts the restarts; ends the process
        elif "SLURM_JOB_ID" in os.environ and rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
            log.info("requeued job %s", os.environ["SLURM_JOB_ID"])
    raise SystemExit(128 + number)
