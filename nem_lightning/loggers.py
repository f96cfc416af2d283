"""The W&B logger, offline by itself where nobody is logged in."""

import os

import wandb
from pytorch_lightning.loggers import WandbLogger as LightningWandbLogger


class WandbLogger(LightningWandbLogger):
    """Lightning's W&B logger, with a default for ``offline`` that asks for no account.

    Args:
        offline: true or false; None is online where the user is logged in, else offline. The variable
            ``WANDB_MODE`` is followed where it is set. W&B's own console output is off: :meth:`where` says it in
            a line.
        kwargs: as for :class:`pytorch_lightning.loggers.WandbLogger`.
    """

    def __init__(self, *, offline: bool | None = None, **kwargs) -> None:
        if offline is None:
            offline = "WANDB_MODE" not in os.environ and not _logged_in()
        if offline:  # not by Lightning's own argument: that sets a variable, which W&B no longer reads by then
            kwargs["mode"] = "offline"
        super().__init__(settings=wandb.Settings(silent=True), **kwargs)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, even of None

    def where(self) -> str:
        """Where the run is to be seen: its address, or the command that uploads it."""
        run = self.experiment
        if run.disabled:
            return "disabled"
        if run.offline:
            return f"offline; upload with: wandb sync {os.path.dirname(run.dir)}"
        return run.url


def _logged_in() -> bool:
    return wandb.login(prompt=False, verify=False)
