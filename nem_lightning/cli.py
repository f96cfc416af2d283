"""What ``train.py`` and ``evaluate.py`` share: folders, errors in one line, the summary at the end."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from nem_lightning.callbacks import NonFiniteLoss
from nem_lightning.errors import InputError


def _sweep_name() -> str | None:
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


# Advertisements and a deprecation between versions of Lightning and PyTorch, which no user can act on.
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.getMessage())
warnings.filterwarnings("ignore", message=".*LeafSpec")

OmegaConf.register_new_resolver("folder_name", lambda path: Path(path).name, replace=True)
OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Let bad input end the program with one line, naming the full setting, instead of a traceback."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            _, found, node = str(error).rpartition("full_key: ")
            raise CompactHydraException(f"{node}.{error.__cause__}" if found else str(error.__cause__)) from None
        raise
    except (InputError, NonFiniteLoss) as error:
        raise CompactHydraException(str(error)) from None


def claim_run_folder(config: DictConfig, ckpt_path: str | None = None) -> None:
    """Write ``config.yaml`` into the run folder, so that no other run takes it.

    A run that goes on from a checkpoint of the same folder may use it again.

    Raises:
        InputError: an earlier run is there, or the folder cannot be written.
    """
    folder = Path(config.paths.run_dir)
    path = folder / "config.yaml"
    resumed = ckpt_path is not None and folder.resolve() in Path(ckpt_path).resolve().parents
    try:
        with open(path, "w" if resumed else "x") as file:
            file.write(OmegaConf.to_yaml(config, resolve=True))
    except FileExistsError:
        raise InputError(
            f"hydra.run.dir={folder}: an earlier run is there; choose another folder, "
            "or go on with that run by ckpt_path="
        ) from None
    except OSError as error:
        raise InputError(f"hydra.run.dir={folder}: cannot be written ({error.strerror})") from None


COLUMNS = {
    "ami_max": "AMI\nmax",
    "ami_arithmetic": "AMI\narithmetic",
    "ari": "ARI\n",
    "reconstruction_error": "reconstr.\nerror",
    "confidence": "confi-\ndence",
    "loss": "loss\n(nats)",
    "log_likelihood": "log lik.\n(nats)",
}


def print_scores_by_step(title: str, scores: list[dict[str, float]], console: Console) -> None:
    """A row a step, a column a score: as on :class:`~nem_lightning.scores.StepScores`."""
    table = Table("step\n", title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for step, row in enumerate(scores, start=1):
        nats = ("loss", "log_likelihood")
        table.add_row(str(step), *(f"{row[name]:.5g}" if name in nats else f"{row[name]:.4f}" for name in COLUMNS))
    console.print(table)


def print_places(places: Mapping[str, object], console: Console) -> None:
    """Where things lie, a line each, never cut."""
    width = max(map(len, places))
    for name, place in places.items():
        console.print(f"{name:>{width}}  {place}", soft_wrap=True, highlight=False, markup=False)
