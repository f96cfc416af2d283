"""The command line: ``python -m nem_lightning.report --help``."""

import argparse
import sys
from pathlib import Path

from nem_lightning.errors import InputError, require
from nem_lightning.report import page


def main() -> None:
    """Read the folders, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m nem_lightning.report",
        description="One self-contained HTML page about a folder of runs, and a table of the runs as CSV beside it.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="runs and sweeps below it are read, such as outputs/sweeps/<time>, or outputs; several are put together",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page, ending in .html (default: report.html in the first FOLDER)",
    )
    arguments = parser.parse_args()
    output = arguments.output or arguments.folders[0] / "report.html"
    try:
        require(output.suffix == ".html", f"--output={output}: must end in .html")
        table = page.write(arguments.folders, output)
    except InputError as error:
        sys.exit(str(error))
    print(f"page   {output}\ntable  {table}")


if __name__ == "__main__":
    main()
