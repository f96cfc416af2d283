"""Are the settings of a class of the kinds that the class says? Lightning would stumble over others while it trains."""

import inspect
import typing
from typing import TYPE_CHECKING, Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from nem_lightning.errors import InputError, require, require_count, require_number

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

COUNTS = {"max_epochs": -1, "max_steps": -1, "min_epochs": 0, "min_steps": 0, "log_every_n_steps": 0}
COUNTS |= {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "num_nodes": 1, "num_sanity_val_steps": -1}
"""The least value of settings of the Trainer that count something."""
NUMBERS = [*(f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict"))]
NUMBERS += ["overfit_batches", "gradient_clip_val"]
"""Settings of the Trainer that are numbers of at least 0."""


def require_kinds(name: str, config: DictConfig) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` if a setting is of another kind than its class says.

    Args:
        name: of the part of the configuration, such as "callbacks".
        config: the part: it, and what lies in it, may have a ``_target_`` whose arguments have type hints. Arguments
            without a hint may be anything.
    """
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    _require_kinds(name, node)


def require_trainer(config: DictConfig) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` for settings that no Trainer can train or test with."""
    for names, check in ((COUNTS, require_count), (dict.fromkeys(NUMBERS, 0), require_number)):
        for name, minimum in names.items():
            if config.get(name) is not None:
                check(f"trainer.{name}", config[name], minimum)
    require_kinds("trainer", config)


def require_clipping(trainer: "Trainer", fused: bool) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` if Lightning could not clip the gradients of the optimizer."""
    refused = fused and trainer.gradient_clip_val and trainer.precision.endswith("mixed")
    require(
        not refused,
        f"optimizer.fused=true: must be false if trainer.precision={trainer.precision} and trainer.gradient_clip_val "
        "is set: Lightning then clips no gradients",
    )


def _require_kinds(name: str, node: dict[Any, Any]) -> None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError  # here, so that --help need not wait for it

    hints, defaults = _arguments(node["_target_"]) if "_target_" in node else ({}, {})
    for argument, value in node.items():
        if isinstance(value, dict):
            _require_kinds(f"{name}.{argument}", value)
        elif argument in hints and value != defaults.get(argument, inspect.Parameter.empty):
            try:
                TypeAdapter(hints[argument], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
            except ValidationError as error:
                allowed = dict.fromkeys(each["msg"].replace("Input should", "must") for each in error.errors())
                raise InputError(f"{name}.{argument}={value}: {' or '.join(allowed)}") from None


def _arguments(target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the hints and the defaults of what a ``_target_`` takes; nothing if they cannot be found."""
    try:
        called = get_object(target)
        hints = typing.get_type_hints(called.__init__ if inspect.isclass(called) else called)
        defaults = {name: found.default for name, found in inspect.signature(called).parameters.items()}
    except Exception:  # of many kinds; that there is no such class is said when the class is instantiated
        return {}, {}
    return hints, defaults
