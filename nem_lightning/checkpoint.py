"""Checkpoints that say how their model is built."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from nem_lightning.errors import InputError, require
from nem_lightning.module import NeuralEMModule

KEY = "nem_lightning_config"
TRUSTED = ("nem_lightning", "torch.nn", "torch.optim")


class SaveConfig(pl.Callback):
    """Puts the run's configuration, plain values, into its checkpoints; :func:`load` reads it.

    Args:
        config: the run's configuration; ``config["model"]`` describes the module.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint[KEY] = self.config


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of :class:`~nem_lightning.module.NeuralEMModule` as a dictionary. Runs no code from the file.

    Raises:
        InputError: no such file, a truncated file, or not a checkpoint of this package.
    """
    if not Path(path).is_file():
        raise InputError(f"ckpt_path={path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling other files' bytes can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"ckpt_path={path}: not a checkpoint, or cut short ({reason})") from error
    require(
        isinstance(checkpoint, dict) and KEY in checkpoint,
        f"ckpt_path={path}: not a checkpoint of nem_lightning (it holds no {KEY})",
    )
    return checkpoint


def load(
    path: str | Path,
    num_components: int | None = None,
    num_steps: int | None = None,
    trusted: Sequence[str] = (),
) -> NeuralEMModule:
    """Build a checkpoint's model and load its weights.

    The configuration in a checkpoint names classes. Only those of this package and of PyTorch are
    built, unless ``trusted`` names others: do so for your own encoder or decoder, not for files of
    strangers.

    Args:
        path: the checkpoint.
        num_components: K; as trained by default.
        num_steps: T; as trained by default. A list of step weights then no longer fits, and "last" is scored.
        trusted: names of packages that the configuration may import.

    Raises:
        InputError: as :func:`read`; or a class of another package.
    """
    checkpoint = read(path)
    config = dict(checkpoint[KEY]["model"])
    for target in _targets(config):
        allowed = (*TRUSTED, *trusted)
        require(
            any(target.startswith(f"{package}.") for package in allowed),
            f"ckpt_path={path}: its model needs {target}; allowed are {', '.join(allowed)}, "
            "add trusted=[package] if you trust it",
        )
    if num_components is not None:
        config["num_components"] = num_components
    if num_steps is not None:
        config["num_steps"] = num_steps
        if not isinstance(config["loss"]["step_weights"], str):
            config["loss"] = {**config["loss"], "step_weights": "last"}
    try:
        module = instantiate(config)
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, InputError) else error from None
    weights = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("em.")}
    module.load_state_dict(weights, strict=False)
    return module


def _targets(config: Any) -> list[str]:
    if isinstance(config, dict):
        own = [config["_target_"]] if "_target_" in config else []
        return own + [target for value in config.values() for target in _targets(value)]
    if isinstance(config, list):
        return [target for value in config for target in _targets(value)]
    return []
