"""What ``train.py`` and ``evaluate.py`` share: errors in one line, the summary at the end.

Importing this imports neither PyTorch nor Lightning, which take seconds: ``--help`` needs neither.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from nem_lightning.errors import InputError, NonFiniteLoss, require, require_count
from nem_lightning.headings import Heading

if TYPE_CHECKING:
    from nem_lightning.figures import Pictures
    from nem_lightning.training.module import GroupingModule

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


def plain(config: DictConfig) -> dict[str, Any]:
    """Give a configuration as plain values, with all interpolations resolved."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def scores_of_test(module: "GroupingModule", split: str) -> dict[str, Any]:
    """Give what ``scores.json`` says of the images that ``module`` was tested on."""
    scores, model = module.test_scores, module.model
    assert scores is not None  # it was tested
    return {
        "split": split,
        "num_images": scores.num_images,
        "unscored_images": scores.unscored_images,
        "num_components": model.num_components,
        "num_steps": model.num_steps,
        "num_starts": model.num_starts,
        "seed": module.seed,
        "headings": {name: list(heading) for name, heading in scores.headings.items()},
        "by_step": scores.by_step,
    }


def print_saved_scores(title: str, scores: Mapping[str, Any], console: Console) -> None:
    """Print what ``scores.json`` holds, a row a step."""
    starts = f", the best of {scores['num_starts']} starts" if scores["num_starts"] > 1 else ""
    headings = {name: Heading(*heading) for name, heading in scores["headings"].items()}
    print_scores_by_step(title + starts, headings, scores["by_step"], console)


def print_scores_by_step(
    title: str, headings: Mapping[str, Heading], scores: list[dict[str, float]], console: Console
) -> None:
    """A row a step, a column a score."""
    table = Table("step", title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = {name: heading for name, heading in headings.items() if heading.title}
    for heading in shown.values():
        table.add_column(heading.title, justify="right", vertical="bottom")
    for step, row in enumerate(scores, start=1):
        table.add_row(str(step), *(format(row[name], heading.format) for name, heading in shown.items()))
    console.print(table)


@dataclass(frozen=True)
class Place:
    """Where something lies, with the label that it is printed with."""

    label: str
    where: object


def places_of(pictures: "Pictures") -> list[Place]:
    """Label the pictures of a model's groupings."""
    return [Place("groupings by step", pictures.groupings), Place("gallery", pictures.gallery)]


def print_places(places: Sequence[Place], console: Console) -> None:
    """Print where things lie, a line each, never cut."""
    width = max(len(place.label) for place in places)
    for place in places:
        console.print(f"{place.label:>{width}}  {place.where}", soft_wrap=True, highlight=False, markup=False)
