"""The W&B logger, offline by itself if nobody is logged in or nothing can be reached."""

import contextlib
import logging
import os
import re
import secrets
import shlex
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import wandb
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger as LightningWandbLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from wandb.errors import CommError

log = logging.getLogger(__name__)


class WandbLogger(LightningWandbLogger):
    """Lightning's W&B logger, with a default for ``offline`` that asks for no account, and runs that go on.

    If an earlier process logged to ``save_dir``, this one goes on with the same run. W&B prints nothing itself:
    :meth:`where` says in a line where the run is. At the end, W&B has a minute (or ``WANDB_FINISH_TIMEOUT`` seconds)
    to send the rest. ``wandb sync`` sends what is left.

    Args:
        save_dir: the run's folder.
        offline: true or false; None is online if the user is logged in and W&B answers within 30 s,
            else offline. Unless ``offline`` is true, the variable ``WANDB_MODE`` decides if it is set.
        summary: metrics of which the run's summary keeps the best value beside the last: "min" or "max".
        kwargs: as for :class:`pytorch_lightning.loggers.WandbLogger`.
    """

    def __init__(
        self, *, save_dir: str, offline: bool | None = None, summary: dict[str, str] | None = None, **kwargs
    ) -> None:
        self._may_fall_back = offline is None
        self._failed = False
        self._summary = summary or {}
        mode = os.environ.get("WANDB_MODE")
        if offline is None and mode is None:
            offline = not wandb.login(prompt=False, verify=False)
        # Not by Lightning's own argument: that sets the variable, which W&B no longer reads by then.
        kwargs["mode"] = "offline" if offline else mode
        settings = wandb.Settings(silent=True, init_timeout=30)
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings.finish_timeout = 60
        earlier = _earlier_runs(save_dir)
        if not earlier and kwargs.get("group") and "WANDB_RUN_ID" in os.environ and "WANDB_SWEEP_ID" not in os.environ:
            log.warning("WANDB_RUN_ID is not followed in a sweep, as all its runs would have this id")
            kwargs["id"] = secrets.token_hex(4)
        if earlier:
            kwargs["id"] = earlier[-1]
        super().__init__(save_dir=save_dir, settings=settings, **kwargs)
        self._goes_on = bool(earlier)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, even of None

    @property
    @rank_zero_experiment
    def experiment(self):
        """The W&B run."""
        if self._experiment is not None:
            return self._experiment
        try:
            run = super().experiment
        except CommError as error:
            if not self._may_fall_back:
                raise
            log.warning("W&B cannot be reached (%s); this run is logged offline", str(error).splitlines()[0])
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        for metric, best in self._summary.items():
            run.define_metric(metric, step_metric="trainer/global_step", summary=f"{best},last")
        return run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning's, but see :meth:`surviving`."""
        with self.surviving():
            super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        """Send the checkpoints, if ``log_model`` asks for it."""
        with self.surviving():
            super().finalize(status)

    @contextlib.contextmanager
    def surviving(self) -> Iterator[None]:
        """Let the run go on if W&B fails within the block, with one warning.

        SLURM sends SIGTERM to all processes of a job, W&B's among them, which ends at once; the run has yet to save.
        """
        try:
            yield
        except Exception as error:  # of many kinds; none is worth a run
            if not self._failed:
                log.warning("W&B failed (%s: %s); the run goes on without", type(error).__name__, error)
            self._failed = True

    def where(self) -> str:
        """Give the address of the run, or the command that uploads the run."""
        run = self.experiment
        if run.disabled:
            return "disabled"
        if run.offline:
            folder = Path(run.dir).parent
            parts = f"{shlex.quote(str(folder.parent))}/offline-run-*-{run.id}"  # W&B sends them in order
            return f"offline; upload with: wandb sync {parts if self._goes_on else shlex.quote(str(folder))}"
        return run.url

    def finish(self, error: BaseException | None = None) -> None:
        """End the run, so that the next one in this process starts its own.

        Args:
            error: what ended the run early; W&B shows it as failed, or as preempted if a signal stopped the run.
        """
        with self.surviving():
            stopped = isinstance(error, SIGTERMException) and getattr(error, "number", None) != signal.SIGINT
            if self._experiment is not None and stopped:
                self._experiment.mark_preempting()
            wandb.finish(exit_code=int(error is not None))


def _earlier_runs(save_dir: str) -> list[str]:
    """The ids of the W&B runs in a folder, in order of time, from W&B's folders ``run-<time>-<id>``."""
    named = [
        re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(.+)", path.name) for path in Path(save_dir, "wandb").glob("*-*")
    ]
    return [run_id for _, run_id in sorted(name.groups() for name in named if name is not None)]
