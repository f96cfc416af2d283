"""Commands that a user can paste."""

import re
import shlex


def override(key: str, value: object) -> str:
    """Give ``key=value`` as a user types it, quoted for Hydra and for the shell if the value needs it."""
    word = argument(key, value)
    if word.startswith(f"{key}='") and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return shlex.quote(word)


def argument(key: str, value: object) -> str:
    """Give ``key=value`` as one argument of a command that is called without a shell, quoted for Hydra if needed."""
    return f"{key}={hydra_value(str(value))}"


def hydra_value(text: str) -> str:
    """Give a text as Hydra reads it in an override, quoted if it needs it."""
    if re.fullmatch(r"[\w./:@%+-]+", text, re.ASCII):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf's escape of what would be looked up
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)  # Hydra's: a backslash counts before a quote alone
    text = re.sub(r"(\\+)\Z", r"\1\1", text)
    return f"'{text}'"
