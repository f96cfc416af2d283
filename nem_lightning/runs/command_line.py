"""What ``train.py`` and ``evaluate.py`` share: errors in one line, the summary at the end.

Importing this imports neither PyTorch nor Lightning, which take seconds: ``--help`` needs neither.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from nem_lightning.errors import InputError, NonFiniteLoss, require, require_count

# Advertisements and a deprecation between versions of Lightning and PyTorch, which no user can act on.
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.getMessage())
warnings.filterwarnings("ignore", message=".*LeafSpec")


def _cuda_or_cpu() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# What the configs may call, as in ${cuda_or_cpu:}
OmegaConf.register_new_resolver("cuda_or_cpu", _cuda_or_cpu, replace=True)
OmegaConf.register_new_resolver("folder_name", lambda path: Path(path).name, replace=True)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Let bad input end the program with one line, naming the full setting, instead of a traceback."""
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            _, found, node = str(error).rpartition("full_key: ")
            raise CompactHydraException(f"{node}.{error.__cause__}" if found else str(error.__cause__)) from None
        raise
    except (InputError, NonFiniteLoss) as error:
        raise CompactHydraException(str(error)) from None
    except SIGTERMException as stop:
        from nem_lightning.runs.signals import leave

        leave(stop)


class CheckRunFolder(Callback):
    """A Hydra callback: ends the program with one line where Hydra could not make the run's folder."""

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        self._check(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        self._check(config, "sweep")

    def _check(self, config: DictConfig, mode: str) -> None:
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the folder's name
        folder = Path(config.hydra[mode].dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"hydra.{mode}.dir={folder}: cannot be written ({error.strerror}); choose another folder")


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch.

    Raises:
        InputError: not an integer from 0 to 2^32 - 1.
    """
    require_count("seed", seed, minimum=0)
    require(seed < 2**32, f"seed={seed}: must be less than 2^32")
    from pytorch_lightning import seed_everything

    seed_everything(seed, verbose=False)


def test_scores(module, split: str) -> dict[str, object]:
    """What ``scores.json`` says of the images that ``module`` was tested on."""
    return {
        "split": split,
        "num_images": module.test_images,
        "num_components": module.num_components,
        "num_starts": module.num_starts,
        "seed": module.seed,
        "by_step": module.test_scores_by_step,
    }


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
    """A row a step, a column a score: as on :class:`~nem_lightning.scores.collection.StepScores`."""
    table = Table("step\n", title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for step, row in enumerate(scores, start=1):
        nats = ("loss", "log_likelihood")
        table.add_row(str(step), *(f"{row[name]:.5g}" if name in nats else f"{row[name]:.4f}" for name in COLUMNS))
    console.print(table)


def best_of(module) -> str:
    """What a title says of several starts."""
    return f", the best of {module.num_starts} starts" if module.num_starts > 1 else ""


def print_places(places: Mapping[str, object], console: Console) -> None:
    """Where things lie, a line each, never cut."""
    width = max(map(len, places))
    for name, place in places.items():
        console.print(f"{name:>{width}}  {place}", soft_wrap=True, highlight=False, markup=False)
