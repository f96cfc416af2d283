"""What differs between runs, and means over seeds."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nem_lightning.headings import Heading
from nem_lightning.report.runs import Run
from nem_lightning.runs.settings import ABSENT, comparable


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of a score over seeds; NaN if there are too few."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        mean = float(np.mean(values)) if len(values) else math.nan
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(mean, deviation, len(values))


@dataclass(frozen=True)
class Setting:
    """A setting that differs between the runs.

    Attributes:
        key: the dotted name.
        name: a short name.
        values: the different values, in order.
        followers: other settings that this one determines (such as a class its arguments), with their values in
            the order of ``values``.
    """

    key: str
    name: str
    values: list[Any]
    followers: dict[str, list[Any]]

    @property
    def numeric(self) -> bool:
        """Whether all values are finite numbers."""
        return all(_order(value)[0] == 0 and math.isfinite(value) for value in self.values)


@dataclass(eq=False)
class Configuration:
    """Runs that differ only in their seed, one run for each seed.

    Attributes:
        label: names and values of the settings that differ from other configurations.
        values: the values of these settings, by key.
        runs: finished or not.
    """

    label: str
    values: dict[str, Any]
    runs: list[Run]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]

    @property
    def best_run(self) -> Run | None:
        """The finished run with the highest test AMI (max)."""
        return max(self.finished, key=lambda run: _or_lowest(run.score("ami_max")), default=None)

    def spread(self, score: str) -> Spread:
        """Give the spread of a score of :meth:`~nem_lightning.report.runs.Run.score` over the finished runs."""
        return Spread.of([run.score(score) for run in self.finished])


class Sweep:
    """Runs, by configuration.

    Attributes:
        runs: all of them.
        settings: settings that differ.
        common: settings that all runs share, by dotted name.
        configurations: in the order of their settings.
        repeated: runs that do not count, because another run has the same settings and seed.
    """

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self._compared = _compared([run for run in runs if run.settings])
        keys = dict.fromkeys(key for settings in self._compared.values() for key in settings)
        values = {key: [settings.get(key, ABSENT) for settings in self._compared.values()] for key in keys}
        different = {key: column for key, column in values.items() if len(set(map(_order, column))) > 1}
        self.common = {key: column[0] for key, column in values.items() if key not in different}
        self.settings = _differing(different)
        self.configurations, self.repeated = self._group()

    def _group(self) -> tuple[list[Configuration], list[Run]]:
        groups: dict[tuple, dict[Any, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for run, compared in self._compared.items():
            place = tuple(_order(compared.get(setting.key, ABSENT)) for setting in self.settings)
            groups[place][run.seed].append(run)
        configurations, repeated = [], []
        for _, seeds in sorted(groups.items()):
            chosen = [max(reversed(runs), key=_standing) for runs in seeds.values()]  # of equals, the last
            repeated += [run for runs in seeds.values() for run in runs if run not in chosen]
            values = {s.key: self._compared[chosen[0]].get(s.key, ABSENT) for s in self.settings}
            named = [f"{setting.name}={shown(setting.key, values[setting.key])}" for setting in self.settings]
            configurations.append(Configuration(", ".join(named) or "all runs", values, chosen))
        return configurations, repeated

    @property
    def headings(self) -> dict[str, Heading]:
        """Headings of all test scores, in order: from the first run that has one, else the name with four digits."""
        names = dict.fromkeys(name for run in self.runs if run.by_step for name in run.by_step[-1])
        known = {name: heading for run in reversed(self.runs) for name, heading in run.headings.items()}
        return {name: known.get(name, Heading(name, ".4g")) for name in names}

    @property
    def statuses(self) -> Counter:
        """How many runs are finished, failed, unfinished, unreadable."""
        return Counter(run.status for run in self.runs)

    @property
    def best(self) -> Configuration | None:
        """The configuration with the highest mean test AMI (max); None if no run is finished."""
        scored = [one for one in self.configurations if math.isfinite(one.spread("ami_max").mean)]
        return max(scored, key=lambda one: one.spread("ami_max").mean, default=None)


def best_first(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Sort by mean test AMI (max), the highest first; configurations without one come last."""
    return sorted(configurations, key=lambda one: -_or_lowest(one.spread("ami_max").mean))


def shown(key: str, value: Any) -> str:
    """Format a setting's value as on the command line, with four digits; for a class, give its name."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).rpartition(".")[2] if key.endswith("_target_") else str(value)


def _compared(runs: list[Run]) -> dict[Run, dict[str, Any]]:
    """Give the settings by which runs are compared: all but the seed, and seeds that equal it in all runs.

    A resumed run ends like an uninterrupted one, so ``ckpt_path`` is left out too.
    """
    seeds = {key for run in runs for key in run.settings if key.endswith(".seed")}
    equal = [key for key in seeds if all(run.settings.get(key, run.seed) == run.seed for run in runs)]
    return {run: comparable(run.settings, ["seed", "ckpt_path", *equal]) for run in runs}


def _order(value: Any) -> tuple[int, float, str]:
    """Give a sort key: numbers by size, then everything else; true is not 1."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return 1, 0.0, f"{type(value).__name__} {value}"


def _standing(run: Run) -> int:
    return ("unreadable", "failed", "unfinished", "finished").index(run.status)


def _or_lowest(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _differing(columns: dict[str, list[Any]]) -> list[Setting]:
    """Give the settings that differ. Settings that a class determines (arguments, defaults) are its followers."""
    followers: dict[str, list[str]] = {}
    for key in sorted(columns, key=lambda key: (not key.endswith("_target_"), key.count("."))):
        leader = next((one for one in followers if one.endswith("_target_") and _determines(columns, one, key)), None)
        if leader is None:
            followers[key] = []
        else:
            followers[leader].append(key)
    names = _short_names(followers)
    settings = []
    for key in (key for key in columns if key in followers):
        first = {_order(value): row for row, value in reversed(list(enumerate(columns[key])))}
        rows = [first[order] for order in sorted(first)]
        following = {other: [columns[other][row] for row in rows] for other in followers[key]}
        settings.append(Setting(key, names[key], [columns[key][row] for row in rows], following))
    return settings


def _determines(columns: dict[str, list[Any]], leader: str, key: str) -> bool:
    pairs = set(zip(map(_order, columns[leader]), map(_order, columns[key]), strict=True))
    return len(pairs) == len({value for value, _ in pairs})


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """Give the shortest end of each dotted key that no other key has."""
    parts = {key: key.removesuffix("._target_").split(".") for key in keys}
    names = {}
    for key, own in parts.items():
        others = [other for name, other in parts.items() if name != key]
        lengths = range(1, len(own) + 1)
        length = next((n for n in lengths if all(other[-n:] != own[-n:] for other in others)), len(own))
        names[key] = ".".join(own[-length:])
    return names
