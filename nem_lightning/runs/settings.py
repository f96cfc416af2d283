"""Whether two runs are the same: which of their settings differ."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

IGNORED = (
    "paths",
    "logger",
    "callbacks.*.dirpath",
    "callbacks.*.path",
    "callbacks.progress_bar",
    "callbacks.log_groupings",
    "callbacks.log_scores_by_step",
    "trainer.accelerator",
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
    "data.data_dir",
    "data.cache_dir",
    "data.devkit",
    "data.mnist_dir",
    "data.download",
    "pixels",  # these follow from the data
    "model.image_shape",
    "model.m_step.image_shape",
    "model.binary",
    "model.*.binary",
)
"""Settings that say where a run lies and what it shows, not what it computes; each with all settings below it."""
OF_REAL_PIXELS = ("model.*likelihood.sigma",)
"""Settings that binary pixels do not use."""
ABSENT = "absent"
"""The value of a setting that a run does not have."""


class Difference(NamedTuple):
    """A setting in which two runs differ; ``ABSENT`` is the value of a run without it."""

    name: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.there} there, {self.here} here"


def differences(there: Mapping[str, Any], here: Mapping[str, Any], but: Sequence[str] = ()) -> list[Difference]:
    """The settings in which two configurations differ, by name: none if both are of the same run.

    A setting that one of them does not have is equal to null and to false: a run that was begun before the setting
    existed goes on.

    Args:
        there: a configuration, plain values, nested or by dotted name.
        here: another one.
        but: patterns of further settings to leave out, such as ``*.seed``.
    """
    one, other = comparable(there, but), comparable(here, but)
    return [
        Difference(name, one.get(name, ABSENT), other.get(name, ABSENT))
        for name in sorted(one | other)
        if not _equal(one.get(name, ABSENT), other.get(name, ABSENT))
    ]


def comparable(settings: Mapping[str, Any], but: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that say what a run computes, by dotted name.

    Files in the run's own folder and in the data's are named from there, as the folders may have been moved.

    Args:
        settings: a configuration, plain values, nested or by dotted name.
        but: patterns of further settings to leave out.
    """
    named = flat(settings)
    unused = OF_REAL_PIXELS if named.get("pixels.binary") is True else ()
    patterns = [pattern for name in (*IGNORED, *unused, *but) for pattern in (name, f"{name}.*")]
    folders = {name: named[name] for name in ("paths.run_dir", "paths.data_dir") if named.get(name)}
    return {
        name: _moved(value, folders)
        for name, value in named.items()
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by dotted name, such as ``model.num_steps``."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            found[str(name)] = value
    return found


def _moved(value: Any, folders: Mapping[str, str]) -> Any:
    for name, folder in folders.items():
        if isinstance(value, str) and f"{value}/".startswith(f"{folder}/"):
            return f"${{{name}}}{value.removeprefix(folder)}"
    return value


def _equal(one: Any, other: Any) -> bool:
    if one is ABSENT or other is ABSENT:
        return all(value is ABSENT or value is None or value is False for value in (one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)  # true is not 1
