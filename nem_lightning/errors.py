"""Exceptions with a message of one line: for input to correct, and for a run that cannot go on."""

import numbers
from typing import TypeGuard


class InputError(ValueError):
    """A setting or a file that cannot be used.

    The message is one line: it names the setting or the file, and says what is allowed.
    ``train.py``, ``evaluate.py`` and ``predict.py`` print the message without a traceback.
    """


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite. The message is one line."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def require_number(name: str, value: object, minimum: float = float("-inf"), maximum: float = float("inf")) -> None:
    """Raise :class:`InputError` unless ``value`` is a number from ``minimum`` to ``maximum``."""
    if maximum < float("inf"):
        allowed = f"lie in [{minimum}, {maximum}]"
    else:
        allowed = f"be a number of at least {minimum}" if minimum > float("-inf") else "be a number"
    require(_is_number(value) and minimum <= value <= maximum, f"{name}={value}: must {allowed}")


def require_positive(name: str, value: object) -> None:
    """Raise :class:`InputError` unless ``value`` is a number greater than 0."""
    require(_is_number(value) and value > 0, f"{name}={value}: must be a number greater than 0")


def require_count(name: str, value: object, minimum: int = 1) -> None:
    """Raise :class:`InputError` unless ``value`` is an integer of at least ``minimum``."""
    require(_is_integer(value) and value >= minimum, f"{name}={value}: must be an integer of at least {minimum}")


def require_flag(name: str, value: object) -> None:
    """Raise :class:`InputError` unless ``value`` is true or false; Hydra reads "no" and "off" as strings."""
    require(isinstance(value, bool), f"{name}={value}: must be true or false")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
