"""The one exception for what a user can put right."""


class InputError(ValueError):
    """A setting or a file that cannot be used.

    The message is one line: it names the setting or the file, and says what is allowed.
    ``train.py`` and ``evaluate.py`` print it without a traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def require_count(name: str, value: object, minimum: int = 1) -> None:
    """Raise :class:`InputError` unless ``value`` is an integer of at least ``minimum``."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    require(is_integer and value >= minimum, f"{name}={value}: must be an integer of at least {minimum}")
