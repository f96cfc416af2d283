"""Checkpoints that say how their model is built."""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.models.corruption import noise_for
from nem_lightning.models.grouping import GroupingModel
from nem_lightning.models.likelihoods import likelihood_for
from nem_lightning.scores.base import Score
from nem_lightning.shipped import MODELS, path_of
from nem_lightning.training.module import GroupingModule, Optimizer

KEY = "nem_lightning_config"
TRUSTED = ("nem_lightning", "torch.nn", "torch.optim")


class SaveConfig(pl.Callback):
    """Puts the run's configuration, plain values, into its checkpoints; :func:`load` reads it.

    Args:
        config: the run's configuration; ``config["model"]`` and ``config["module"]`` describe the module.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint[KEY] = self.config


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are complete or absent: an earlier file stays until the new one is complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """
        Raises:
            InputError: the file cannot be written, such as on a full disk.
        """
        try:
            with atomic_file(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError if a file cannot be written
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: cannot be written ({reason}); what was saved before is as it was") from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint by :func:`contents`, which checks it."""
        return contents(path)


def contents(path: str | Path) -> Any:
    """Read what :func:`torch.save` wrote to a file. Runs no code from the file, and checks all its checksums.

    Raises:
        InputError: no such file, or a file that is cut short or damaged.
    """
    file = path_of(path)
    if not file.is_file():
        raise InputError(f"ckpt_path={path}: no such file, nor one of the models {', '.join(MODELS)}")
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not look at checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling other files' bytes can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # PyTorch's words advise to trust the file
            reason = "not what torch.save writes of tensors and plain values"
        raise InputError(f"ckpt_path={path}: not a checkpoint, damaged or cut short ({reason})") from error


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of :class:`GroupingModule` as a dictionary. Runs no code from the file.

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


def begin_with(path: str | Path, module: nn.Module) -> None:
    """Give a module the weights of a checkpoint, and nothing else of the checkpoint: ``weights_from`` of ``train.py``.

    Raises:
        InputError: as :func:`read`, or weights of other names or shapes than the module's.
    """
    try:
        module.load_state_dict(weights(read(path), module, path))
    except InputError as error:
        raise InputError(str(error).replace("ckpt_path=", "weights_from=", 1)) from None


def weights(checkpoint: dict[str, Any], module: nn.Module, path: str | Path) -> dict[str, torch.Tensor]:
    """Give the whole state in a checkpoint that was read from ``path``, for ``module``.

    Raises:
        InputError: weights of other names or shapes than the module's.
    """
    saved, expected = checkpoint.get("state_dict", {}), module.state_dict()
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
    num_components: int | str | None = None,
    num_steps: int | None = None,
    num_starts: int | None = None,
    trusted: Sequence[str] | str = (),
) -> GroupingModel:
    """Build a checkpoint's model and load its weights; the model is in evaluation mode.

    The configuration in a checkpoint names classes. Only those of this package, ``torch.nn`` and
    ``torch.optim`` are built, unless ``trusted`` names other packages: do so for your own encoder or
    decoder, not for files of strangers.

    Args:
        path: the checkpoint, or the name of one of :data:`nem_lightning.shipped.MODELS`.
        num_components: K; as trained by default. "auto": chosen for each image, up to twice as many as trained.
        num_steps: T; as trained by default. A list of step weights then no longer fits, and "last" is scored.
        num_starts: how many starts to choose from; as trained by default.
        trusted: names of packages that the configuration may import, or one name.

    Raises:
        InputError: as :func:`read` and :func:`weights`; a class of another package; or a number below 1.
    """
    sizes = {"num_components": num_components, "num_steps": num_steps, "num_starts": num_starts}
    return load_module(path, sizes=sizes, trusted=trusted).model.eval()


def load_module(
    path: str | Path,
    scores: Mapping[str, Score] | None = None,
    seed: int | None = None,
    sizes: Mapping[str, int | str | None] | None = None,
    trusted: Sequence[str] | str = (),
) -> GroupingModule:
    """Build a checkpoint's module for scoring, and load its whole state.

    Args:
        path: the checkpoint.
        scores: by name; none by default.
        seed: of the random numbers; as trained by default.
        sizes: ``num_components``, ``num_steps`` and ``num_starts`` by name; None: as trained.
        trusted: as for :func:`load`.

    Raises:
        InputError: as :func:`load`.
    """
    checkpoint = read(path)
    config = checkpoint[KEY]
    require(
        isinstance(config, dict) and isinstance(config.get("model"), dict) and isinstance(config.get("module"), dict),
        f"ckpt_path={path}: its configuration describes no model and module",
    )
    model, module = dict(config["model"]), dict(config["module"])
    trusted = [trusted] if isinstance(trusted, str) else trusted
    _require_trusted([model, module], (*TRUSTED, *trusted), path)
    sizes = sizes or {}
    chooses = sizes.get("num_components") == "auto"
    for name, value in sizes.items():
        if value is not None and not (chooses and name == "num_components"):
            model[name] = value
    loss = model.get("loss")
    if sizes.get("num_steps") is not None and isinstance(loss, dict) and isinstance(loss.get("step_weights"), list):
        model["loss"] = {**loss, "step_weights": "last"}
    if seed is not None:
        module["seed"] = seed
    try:
        built = build(model, module, scores)
    except (InstantiationException, TypeError) as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"ckpt_path={path}: its model cannot be built ({reason})") from error
    require(isinstance(built, GroupingModule), f"ckpt_path={path}: its module is a {type(built).__name__}")
    built.load_state_dict(weights(checkpoint, built, path))
    if chooses:
        can = type(built.model).unroll_choosing is not GroupingModel.unroll_choosing
        require(can, f"num_components=auto: {type(built.model).__name__} cannot choose; give a number")
        built.model.choose_up_to = 2 * built.model.num_components
    return built


def build(
    model: Mapping[str, Any],
    module: Mapping[str, Any],
    scores: Mapping[str, Score] | None = None,
    optimizer: Optimizer | None = None,
) -> GroupingModule:
    """Build a model and its module from the settings ``model`` and ``module`` of a configuration.

    Raises:
        InputError: a setting out of its range; Hydra wraps the error, with the name of the setting.
    """
    built = instantiate(model)
    try:
        return instantiate(module, _partial_=True)(model=built, scores=scores, optimizer=optimizer)
    except InputError as error:  # Hydra has not named it, as the parts are given to the module afterwards
        name = str(error).partition("=")[0]
        raise InputError(f"module.{error}" if name in module else str(error)) from None


def _require_trusted(config: Any, allowed: Sequence[str], path: str | Path) -> None:
    """Raise :class:`InputError` unless every ``_target_`` is a class that was defined in an allowed package."""
    if isinstance(config, str):
        require("${" not in config, f"ckpt_path={path}: its configuration holds {config!r}; must be a plain value")
    elif isinstance(config, list | tuple):
        for value in config:
            _require_trusted(value, allowed, path)
    elif isinstance(config, dict):
        if "_target_" in config:
            target = str(config["_target_"])
            known = _is_in(target, allowed)  # before it is imported
            try:
                found: Any = get_object(target) if known else None
            except Exception as error:
                raise InputError(f"ckpt_path={path}: its model needs {target}, which is not there") from error
            require(
                _is_class_or_maker(found) and _is_in(f"{found.__module__}.{found.__qualname__}", allowed),
                f"ckpt_path={path}: its model needs {target}; allowed are classes of {', '.join(allowed)}; "
                "add trusted=[package] if you trust it",
            )
        for value in config.values():
            _require_trusted(value, allowed, path)


def _is_class_or_maker(found: Any) -> bool:
    """Say whether something is a class, or one of the functions that make a part of a model."""
    return isinstance(found, type) or found in (likelihood_for, noise_for)


def _is_in(name: str, packages: Sequence[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)
