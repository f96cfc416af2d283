"""Checkpoints that say how their model is built."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pytorch_lightning.plugins.io import TorchCheckpointIO

from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.training.module import NeuralEMModule

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


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are there whole or not at all, and leaves an earlier one alone until then."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """
        Raises:
            InputError: the file cannot be written, such as on a full disk.
        """
        try:
            with atomic_file(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError where a file cannot be written
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: cannot be written ({reason}); what was saved before is as it was") from error


def contents(path: str | Path) -> Any:
    """What :func:`torch.save` wrote to a file. Runs no code from it.

    Raises:
        InputError: no such file, or a truncated one.
    """
    if not Path(path).is_file():
        raise InputError(f"ckpt_path={path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling other files' bytes can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # PyTorch's words advise to trust the file
            reason = "not what torch.save writes of tensors and plain values"
        raise InputError(f"ckpt_path={path}: not a checkpoint, or cut short ({reason})") from error


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of :class:`~nem_lightning.training.module.NeuralEMModule` as a dictionary. Runs no code from the file.

    Raises:
        InputError: as :func:`contents`, or not a checkpoint of this package.
    """
    checkpoint = contents(path)
    require(
        isinstance(checkpoint, dict) and KEY in checkpoint,
        f"ckpt_path={path}: not a checkpoint of nem_lightning (it holds no {KEY})",
    )
    return checkpoint


def read_run(path: str | Path) -> dict[str, Any]:
    """A checkpoint that training can go on from, as a dictionary.

    Raises:
        InputError: as :func:`read`, or it holds weights alone.
    """
    checkpoint = read(path)
    require(
        "optimizer_states" in checkpoint,
        f"ckpt_path={path}: holds weights alone, no state of training; evaluate.py can score it",
    )
    return checkpoint


def weights(checkpoint: dict[str, Any], module: NeuralEMModule, path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint that was read from ``path``, for ``module.em``.

    Raises:
        InputError: weights of other names or shapes than the module's.
    """
    saved = checkpoint.get("state_dict", {})
    saved = {name.removeprefix("em."): value for name, value in saved.items() if name.startswith("em.")}
    expected = module.em.state_dict()
    for name in sorted(expected.keys() | saved.keys()):
        given, wanted = (tuple(of[name].shape) if name in of else "none" for of in (saved, expected))
        require(
            given == wanted,
            f"ckpt_path={path}: does not fit this model: {name} is {given} in the checkpoint, must be {wanted}; "
            "choose the model and the image size it was trained with",
        )
    return saved


def load(
    path: str | Path,
    num_components: int | None = None,
    num_steps: int | None = None,
    num_starts: int | None = None,
    trusted: Sequence[str] | str = (),
) -> NeuralEMModule:
    """Build a checkpoint's model and load its weights.

    The configuration in a checkpoint names classes. Only those of this package, ``torch.nn`` and
    ``torch.optim`` are built, unless ``trusted`` names other packages: do so for your own encoder or
    decoder, not for files of strangers.

    Args:
        path: the checkpoint.
        num_components: K; as trained by default.
        num_steps: T; as trained by default. A list of step weights then no longer fits, and "last" is scored.
        num_starts: from how many first responsibilities; as trained by default.
        trusted: names of packages that the configuration may import, or one name.

    Raises:
        InputError: as :func:`read` and :func:`weights`; a class of another package; K, T or the number of
            starts below 1; or several starts with Gaussian pixels.
    """
    checkpoint = read(path)
    config = dict(checkpoint[KEY]["model"])
    trusted = [trusted] if isinstance(trusted, str) else trusted
    _require_trusted(config, (*TRUSTED, *trusted), path)
    if num_components is not None:
        config["num_components"] = num_components
    if num_starts is not None:
        config["num_starts"] = num_starts
    if num_steps is not None:
        config["num_steps"] = num_steps
        if not isinstance(config["loss"]["step_weights"], str):
            config["loss"] = {**config["loss"], "step_weights": "last"}
    try:
        module = instantiate(config)
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, InputError) else error from None
    module.em.load_state_dict(weights(checkpoint, module, path))
    return module


def _require_trusted(config: Any, allowed: Sequence[str], path: str | Path) -> None:
    """Raise unless every ``_target_`` is a class that was defined in an allowed package."""
    if isinstance(config, str):
        require("${" not in config, f"ckpt_path={path}: its configuration holds {config!r}; must be a plain value")
    elif isinstance(config, list | tuple):
        for value in config:
            _require_trusted(value, allowed, path)
    elif isinstance(config, dict):
        if "_target_" in config:
            target = str(config["_target_"])
            known = _is_in(target, allowed)  # before it is imported
            cls = get_object(target) if known else None
            require(
                isinstance(cls, type) and _is_in(f"{cls.__module__}.{cls.__qualname__}", allowed),
                f"ckpt_path={path}: its model needs {target}; allowed are classes of {', '.join(allowed)}; "
                "add trusted=[package] if you trust it",
            )
        for value in config.values():
            _require_trusted(value, allowed, path)


def _is_in(name: str, packages: Sequence[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)
