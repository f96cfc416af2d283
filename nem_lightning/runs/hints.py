"""Commands that a user can paste."""

import re
import shlex


def override(key: str, value: object) -> str:
    """Give ``key=value`` as a user types it, quoted for Hydra and for the shell if the value needs it."""
    text = str(value)
    if not re.fullmatch(r"[\w./:@%+-]+", text, re.ASCII):
        text = text.replace("\\", "\\\\").replace("'", "\\'")  # Hydra's own quotes and escapes
        text = f"'{text}'"
        if not re.search(r'["$`\\!]', text):
            return f'"{key}={text}"'
    return shlex.quote(f"{key}={text}")
