"""Reads the folders of runs, even if some files are missing or broken."""

import csv
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nem_lightning.errors import InputError, require
from nem_lightning.headings import Heading
from nem_lightning.runs.folder import CONFIG, ERROR, SCORES
from nem_lightning.runs.settings import flat

CURVES = ("val/ami_max", "val/reconstruction_error", "val/loss", "train/loss")
EXPECTED = ("seed", "data", "model", "paths")  # keys of config.yaml; paths is its last one
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if PyYAML has it


@dataclass(eq=False)
class Run:
    """The data of a run. An attribute that cannot be read is empty, and ``problems`` says why.

    Attributes:
        folder: of the run, as given.
        settings: by dotted name; empty if ``config.yaml`` cannot be read.
        curves: for each of ``CURVES``, the mean of each epoch by the number of epochs trained.
        by_step: test scores after each EM step; empty unless the run is finished.
        headings: of the test scores, by name.
        best_score: the best value of the validation score that the checkpoints watch.
        epochs: number of epochs trained.
        error: why the run failed.
        problems: what could not be read, a line each.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    by_step: list[dict[str, float]] = field(default_factory=list)
    headings: dict[str, Heading] = field(default_factory=dict)
    best_score: float = math.nan
    epochs: float = math.nan
    error: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``unfinished``, or ``unreadable`` if its settings are not known."""
        if self.settings and self.by_step:
            return "finished"
        if self.error:
            return "failed"
        return "unfinished" if self.settings else "unreadable"

    def score(self, name: str) -> float:
        """Give a test score after the last EM step, ``best_score`` or ``epochs``; NaN if there is none."""
        if name in ("best_score", "epochs"):
            return getattr(self, name)
        return self.by_step[-1].get(name, math.nan) if self.by_step else math.nan


def find(folders: Sequence[Path]) -> list[Run]:
    """Find the runs in some folders and below them.

    A folder with ``config.yaml`` is a run; a folder with ``error.txt`` alone is a run that failed before it began.
    Folders whose name begins with a dot are left out, and so are evaluations of checkpoints.

    Raises:
        InputError: a folder does not exist, or there is no run in any of them.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        require(folder.is_dir(), f"{folder}: no such folder; give the folder of a sweep, such as outputs/sweeps/<time>")
        for path in _run_folders(folder):
            run = None if path.resolve() in runs else read(path)
            if run is not None:
                runs[path.resolve()] = run
    named = ", ".join(map(str, folders))
    require(bool(runs), f"{named}: no run in it; a run's folder holds the config.yaml that train.py writes")
    return list(runs.values())


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, subfolders, files in os.walk(folder):
        if CONFIG in files:
            subfolders.clear()  # loggers write their own config.yaml there
        if CONFIG in files or ERROR in files:
            yield Path(path)
        subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Give a sort key that puts 2 before 10."""
    return [(int(digits or 0), other) for digits, other in re.findall(r"(\d+)|(\D+)", name)]


def read(folder: Path) -> Run | None:
    """Read the run of a folder; None for the evaluation of a checkpoint."""
    run = Run(folder)
    if (folder / CONFIG).exists():
        try:
            run.settings = _settings(folder / CONFIG)
        except InputError as error:
            run.problems.append(str(error))
    if "split" in run.settings and "model._target_" not in run.settings:
        return None
    run.curves = _curves(folder, run.problems)
    if (folder / SCORES).exists():
        try:
            _read_scores(folder / SCORES, run)
        except InputError as error:
            run.problems.append(str(error))
    if (folder / ERROR).exists():
        try:
            lines = _text(folder / ERROR).split("\n")
        except InputError as error:
            lines = [str(error)]
        run.error = next((line.strip() for line in reversed(lines) if line.strip()), "error.txt is empty")
    return run


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: is not text") from error


def _settings(path: Path) -> dict[str, Any]:
    """Read ``config.yaml`` by dotted name, such as ``model.num_steps``; lists become text."""
    text = _text(path)
    try:
        config = yaml.load(text, _YamlLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: is not YAML") from error
    require(isinstance(config, dict), f"{path.name}: holds no settings")
    if "split" not in config:
        missing = [key for key in EXPECTED if key not in config]
        require(not missing, f"{path.name}: {', '.join(missing)} is missing; cut short?")
    plain = (type(None), bool, int, float, str)
    return {
        key: value if isinstance(value, plain) else json.dumps(value, default=str)
        for key, value in flat(config).items()
    }


def _read_scores(path: Path, run: Run) -> None:
    text = _text(path)
    try:
        scores = json.loads(text)
        by_step = [{str(name): _number(value) for name, value in step.items()} for step in scores["by_step"]]
        run.best_score, run.epochs = _number(scores.get("best_score")), _number(scores.get("epochs"))
        headings = {name: Heading(str(title), spec) for name, (title, spec) in scores.get("headings", {}).items()}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: is not JSON; cut short?") from error
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{path.name}: holds no scores by EM step") from error
    require(bool(by_step), f"{path.name}: holds no scores by EM step")
    run.by_step = by_step
    for name, heading in headings.items():
        try:
            format(0.0, heading.format)
            run.headings[name] = heading
        except (ValueError, TypeError):
            run.problems.append(
                f"{path.name}: {name} has the heading {list(heading)}, whose format is none for numbers"
            )


def _number(value: Any) -> float:
    """Give a value as a float; NaN if it is not a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _curves(folder: Path, problems: list[str]) -> dict[str, dict[int, float]]:
    """Read the mean of each epoch. A resumed run has several files: a later file replaces the earlier ones from its
    first step on."""
    points: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for path in sorted(folder.glob("csv/**/metrics.csv"), key=lambda path: _natural(path.parent.name)):
        try:
            text = _text(path)
            whole = text[: text.rfind("\n") + 1]
            rows = list(csv.DictReader(whole.splitlines()))
        except (InputError, csv.Error) as error:
            problems.append(f"{path.relative_to(folder)}: {error}")
            continue
        if whole != text:
            problems.append(f"{path.relative_to(folder)}: its last line is cut short and left out")
        for name in CURVES:
            later = [point for row in rows if (point := _point(row, name)) is not None]
            if later:
                points[name] = [point for point in points[name] if point[0] < later[0][0]] + later
    return {name: _epoch_means(points[name]) for name in CURVES if points[name]}


def _point(row: dict[str, str], name: str) -> tuple[int, int, float] | None:
    """Give step, epochs trained and value, or None. A test's row is left out: it repeats training values."""
    if any(value for key, value in row.items() if key is not None and key.startswith("test/")):
        return None
    try:
        point = int(row["step"]), int(row["epoch"]) + 1, float(row[name])
    except (KeyError, TypeError, ValueError):
        return None
    return point if math.isfinite(point[2]) else None


def _epoch_means(points: list[tuple[int, int, float]]) -> dict[int, float]:
    epochs = defaultdict(list)
    for _, epoch, value in points:
        epochs[epoch].append(value)
    return {epoch: math.fsum(values) / len(values) for epoch, values in sorted(epochs.items())}
