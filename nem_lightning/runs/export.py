"""Write a data set in the published layout: ``python -m nem_lightning.runs.export FILE data=flying_shapes``."""

import argparse
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from rich.console import Console

from nem_lightning.errors import InputError, require

CONF = Path(__file__).parents[2] / "conf"
GROUPS = {"train": "training", "val": "validation", "test": "test"}
"""Of each stage, the name of its group in a published file."""


def main() -> None:
    """Read the command line, then :func:`export`."""
    parser = argparse.ArgumentParser(
        prog="python -m nem_lightning.runs.export", description="Write a data set to HDF5."
    )
    parser.add_argument("file", type=Path, help="the file that is written; it must not be there yet")
    parser.add_argument("settings", nargs="*", help="as of train.py: data=flying_shapes data.num_objects=4")
    arguments = parser.parse_args()
    try:
        export(arguments.file, arguments.settings)
    except (InputError, HydraException) as error:
        sys.exit(" ".join(str(error).split()))
    Console().print(f"written  {arguments.file}", highlight=False, soft_wrap=True)


def export(file: Path, settings: list[str]) -> None:
    """Write the training, validation and test images of a data set.

    Args:
        file: is written whole or not at all.
        settings: overrides of ``conf/train.yaml``.

    Raises:
        InputError: the file is there already, or the data set cannot be made or written.
    """
    from nem_lightning.datamodules import published

    require(not file.exists(), f"{file}: is there already; choose another file")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=settings)
    data = instantiate(config.data)
    data.prepare_data()
    data.setup()
    published.write(file, ((group, data.stages[stage]) for stage, group in GROUPS.items()))


if __name__ == "__main__":
    main()
