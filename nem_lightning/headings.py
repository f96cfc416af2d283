"""How a number is shown: its title and its format, read by the terminal table, the report and the results."""

from typing import NamedTuple


class Heading(NamedTuple):
    """Title and format of one number."""

    title: str
    """Such as "AMI (max)". An empty title leaves the number out of tables, but not out of files."""
    format: str = ".4f"
    """Python's format of the value."""
