"""The W&B logger, offline by itself where nobody is logged in or nothing can be reached."""

import logging
import os

import wandb
from pytorch_lightning.loggers import WandbLogger as LightningWandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

log = logging.getLogger(__name__)


class WandbLogger(LightningWandbLogger):
    """Lightning's W&B logger, with a default for ``offline`` that asks for no account.

    W&B's own console output is off: :meth:`where` says in a line where the run is.

    Args:
        offline: true or false; None is online where the user is logged in and W&B answers within 30 s,
            else offline. The variable ``WANDB_MODE`` is followed where it is set.
        kwargs: as for :class:`pytorch_lightning.loggers.WandbLogger`.
    """

    def __init__(self, *, offline: bool | None = None, **kwargs) -> None:
        self._may_fall_back = offline is None
        mode = os.environ.get("WANDB_MODE")
        if offline is None and mode is None:
            offline = not wandb.login(prompt=False, verify=False)
        # Not by Lightning's own argument: that sets the variable, which W&B no longer reads by then.
        kwargs["mode"] = "offline" if offline else mode
        super().__init__(settings=wandb.Settings(silent=True, init_timeout=30), **kwargs)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, even of None

    @property
    @rank_zero_experiment
    def experiment(self):
        """The W&B run."""
        try:
            return super().experiment
        except wandb.errors.CommError as error:
            if not self._may_fall_back:
                raise
            log.warning("W&B cannot be reached (%s); this run is logged offline", str(error).splitlines()[0])
            self._wandb_init["mode"] = "offline"
            return super().experiment

    def where(self) -> str:
        """Where the run is to be seen: its address, or the command that uploads it."""
        run = self.experiment
        if run.disabled:
            return "disabled"
        if run.offline:
            return f"offline; upload with: wandb sync {os.path.dirname(run.dir)}"
        return run.url

    def finish(self, failed: bool = False) -> None:
        """End the run, so that the next one in this process starts its own; W&B shows whether it failed."""
        wandb.finish(exit_code=int(failed))
