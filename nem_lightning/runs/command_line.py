"""What ``train.py`` and ``evaluate.py`` share: errors in one line, the summary at the end.

Importing this module imports neither PyTorch nor Lightning, which take seconds: ``--help`` needs neither.
"""

import contextlib
import io
import logging
import math
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nem_lightning.errors import InputError, NonFiniteLoss, require, require_count
from nem_lightning.headings import Heading
from nem_lightning.runs.hints import hydra_value
from nem_lightning.runs.settings import differences

if TYPE_CHECKING:
    from nem_lightning.figures import Pictures
    from nem_lightning.training.module import GroupingModule

log = logging.getLogger(__name__)

for stream in (sys.stdout, sys.stderr):  # nothing printed may end a run in a terminal that lacks a character
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")

# Advertisements and warnings of Lightning that no user can act on.
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
    lambda record: not re.search(r"Tip:|Ignoring `Trainer\(max_time", record.getMessage())  # our own timer has it
)
warnings.filterwarnings("ignore", message=".*LeafSpec")
warnings.filterwarnings("ignore", message=".*is not supported by the model summary")  # of each mixed precision
# The launcher's file has the name of the plugin's schema on purpose; Hydra < 1.4 takes both.
warnings.filterwarnings("ignore", message="(?s).*validated against ConfigStore schema with the same name")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line that names the setting, not a traceback, if the input is bad."""
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    try:
        yield
    except InstantiationException as error:
        _, found, node = str(error).rpartition("full_key: ")
        cause = error.__cause__ or error
        names_setting = isinstance(cause, InputError) and re.match(r"\w[\w.]*[=:] ?", str(cause))
        between = "." if names_setting else ": "
        raise _one_line(f"{node}{between}{cause}" if found else str(cause)) from error
    except (InputError, NonFiniteLoss, MisconfigurationException) as error:
        raise _one_line(str(error)) from error
    except OmegaConfBaseException as error:
        named = f"{error.full_key}: " if error.full_key else ""
        line = f"{named}{error.msg or error}".partition("    full_key")[0]
        raise _one_line(line) from None  # Hydra would print the cause, in several lines
    except SIGTERMException as stop:
        from nem_lightning.runs.signals import exit_after_signal

        exit_after_signal(stop)
    except Exception as error:
        if isinstance(error, ValueError) and _raised_by_lightning(error):
            raise _one_line(f"trainer: {error}") from error
        if type(error).__module__.startswith(("wandb.errors", "pydantic_core")):  # W&B checks its settings by pydantic
            raise _one_line(f"logger.wandb: {error}") from error
        raise


def _raised_by_lightning(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith(("pytorch_lightning.", "lightning_fabric."))


def _one_line(message: str) -> CompactHydraException:
    """Give an exception that Hydra prints without a traceback (with it if HYDRA_FULL_ERROR=1)."""
    return CompactHydraException(" ".join(message.split()))


def parts(config: DictConfig) -> dict[str, Any]:
    """Instantiate the named parts of a group, such as the callbacks; ``callbacks.NAME=null`` leaves one out."""
    return {name: part for name, part in instantiate(config).items() if part is not None}


class CheckRunFolder(Callback):
    """A Hydra callback that ends the program with one line if the folder of the run or sweep cannot be written."""

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        self._check(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        self._check(config, "sweep")

    def _check(self, config: DictConfig, mode: str) -> None:
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the folder's name
        folder = Path(config.hydra[mode].dir).expanduser()  # a shell expands ~ only at the start of a word
        if str(folder) != config.hydra[mode].dir:
            expanded = hydra_value(str(folder))
            with read_write(config.hydra):
                config.hydra[mode].dir = str(folder)
                config.hydra.overrides.hydra.append(f"hydra.{mode}.dir={expanded}")  # for the jobs of a sweep
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"hydra.{mode}.dir={folder}: cannot be written ({error.strerror}); choose another folder")


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and PyTorch.

    Raises:
        InputError: the seed is not an integer from 0 to 2^32 - 1.
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


def warn_of_other_data(trained: Mapping[str, Any], config: DictConfig) -> None:
    """Say in a line in which settings of the data this configuration differs from the one of a training."""
    of_training = {"data": trained.get("data"), "paths": trained.get("paths", {})}
    here = {"data": plain(config.data), "paths": plain(config.paths)}
    but = ("paths.*", "data.seed", "data.batch_size", "data.mnist_dir")
    if not of_training["data"] or not (other := differences(of_training, here, but)):
        return
    if (of_class := next((each for each in other if each.name == "data._target_"), None)) is not None:
        there, now = (str(target).rpartition(".")[2] for target in (of_class.there, of_class.here))
        said = f"{there} in training, {now} here; data=... chooses others"
    else:
        said = "; ".join(f"{each.name}: {each.there} in training, {each.here} here" for each in other[:3])
    log.warning("these are not the data of the training (%s)", said)


def scores_of_test(module: "GroupingModule", split: str) -> dict[str, Any]:
    """Give what ``scores.json`` says of a test.

    Args:
        module: what was tested; without scores if no image was.
        split: the images: "train", "val" or "test".
    """
    scores, model = module.test_scores, module.model
    return {
        "split": split,
        "num_images": scores.num_images if scores else 0,
        "unscored_images": scores.unscored_images if scores else 0,
        "num_components": model.choose_up_to or model.num_components,
        "num_steps": model.num_steps,
        "num_starts": model.num_starts,
        "seed": module.seed,
        "headings": scores.headings if scores else {},
        "by_step": scores.by_step if scores else [],
        **({"mean_over_steps": scores.mean_over_steps} if scores and scores.num_frames > 1 else {}),
    }


def print_saved_scores(title: str, scores: Mapping[str, Any], console: Console) -> None:
    """Print what ``scores.json`` holds, a row for each step."""
    starts = f", the best of {scores['num_starts']} starts" if scores["num_starts"] > 1 else ""
    headings = {name: Heading(*heading) for name, heading in scores["headings"].items()}
    print_scores_by_step(title + starts, headings, scores["by_step"], console, scores.get("mean_over_steps"))


def print_scores_by_step(
    title: str,
    headings: Mapping[str, Heading],
    by_step: Sequence[Mapping[str, float | None]],
    console: Console,
    mean: Mapping[str, float | None] | None = None,
) -> None:
    """Print a table: a row for each step, a column for each score with a title; NaN is "-".

    If the console is too narrow for all columns, print several tables below each other.

    Args:
        title: above the table.
        headings: by name of the score.
        by_step: a value for each name, after each step.
        console: where to print.
        mean: over all steps, for a last row.
    """
    steps = [str(step) for step in range(1, len(by_step) + 1)]
    rows = list(by_step)
    if mean is not None:
        steps.append("mean")
        rows.append(mean)
    columns = []
    for name, (heading, spec) in headings.items():
        if heading:
            values = [_shown(row[name], spec) for row in rows]
            width = max(map(len, (*heading.split(), *values)))
            columns.append((width, Text("\n".join(textwrap.wrap(heading, width))), values))
    console.print(Text(title if columns else f"{title}: none", style="table.title"), soft_wrap=True)
    while columns:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        left, cells = console.width - len("step"), [steps]
        table.add_column("step", vertical="bottom")
        while columns and (columns[0][0] < left or len(cells) == 1):
            width, heading, values = columns.pop(0)
            table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
            cells.append(values)
            left -= width + 1
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        console.print(table)
        console.print()


def _shown(value: float | None, spec: str) -> str:
    """Give a score as text; files have None instead of NaN and infinity."""
    return "-" if value is None or math.isnan(value) else format(value, spec)


@dataclass(frozen=True)
class Place:
    """Where something lies, with the label that it is printed with."""

    label: str
    where: object


def places_of(pictures: "Pictures") -> list[Place]:
    """Label the pictures of a model's groupings."""
    places = [Place("groupings by step", pictures.groupings), Place("gallery", pictures.gallery)]
    return places + ([Place("animation", pictures.animation)] if pictures.animation else [])


def print_places(places: Sequence[Place], console: Console) -> None:
    """Print a line for each place, never cut."""
    width = max(len(place.label) for place in places)
    for place in places:
        console.print(f"{place.label:>{width}}  {place.where}", soft_wrap=True, highlight=False, markup=False)
