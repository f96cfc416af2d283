"""A run's folder: whose it is, whether the run is finished, and what an unfinished one goes on from."""

import contextlib
import json
import logging
import traceback
from pathlib import Path
from typing import IO, Any

import yaml

from nem_lightning.errors import InputError
from nem_lightning.files import atomic_file

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

log = logging.getLogger(__name__)

CONFIG, SCORES, ERROR = "config.yaml", "scores.json", "error.txt"
CHECKPOINTS = ("last.ckpt", "interrupted.ckpt", "best.ckpt")
"""What an unfinished run may go on from: the one of the most steps, the first of these where they are equal."""


class RunFolder:
    """The folder of one run.

    It belongs to the run whose settings are in its ``config.yaml``: the same run, started again, goes on
    there; another one is refused. It holds ``scores.json`` once the run is finished, and ``error.txt``
    where it failed.

    As a context, it notes in ``error.txt`` why the block failed, unless the folder is another run's, and
    lets the folder go.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._claimed = False

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and (self._claimed or not (self.path / CONFIG).exists()):
            text = "".join(traceback.format_exception(error))
            with contextlib.suppress(OSError):  # such as on a full disk
                (self.path / ERROR).write_text(f"{text}\n{' '.join(str(error).split())}\n")
        if self._lock is not None:
            self._lock.close()  # which lets go of it, as does the end of the process, however it ends

    def claim(self, settings: dict[str, Any], again: bool = True) -> None:
        """Make the folder this run's, until the process ends.

        Args:
            settings: the run's whole configuration, plain values.
            again: whether a run of the same settings may go on there.

        Raises:
            InputError: another run is there, or a process that runs it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            earlier = self._settings()
            if earlier is None:
                with atomic_file(self.path / CONFIG) as file:
                    file.write_text(yaml.safe_dump(settings, sort_keys=False))
        except OSError as error:
            raise InputError(f"hydra.run.dir={self.path}: cannot be written ({error.strerror})") from None
        different = _differences(earlier, settings) if earlier is not None else []
        if different or (earlier is not None and not again):
            said = f" ({'; '.join(different[:3])})" if different else ""
            raise InputError(f"hydra.run.dir={self.path}: an earlier run is there{said}; choose another folder")
        self._claimed = True
        (self.path / ERROR).unlink(missing_ok=True)

    def _acquire(self) -> None:
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held until the run ends)
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"hydra.run.dir={self.path}: another process is running it") from None
        except OSError as error:  # some cluster file systems have no locks
            log.warning("%s: %s; see that no two processes run the same run", self.path, error.strerror)

    @property
    def is_running(self) -> bool:
        """Whether a process runs it."""
        try:
            with open(self.path / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (OSError, AttributeError):  # no lock, or none here
            pass
        return False

    def _settings(self) -> dict[str, Any] | None:
        try:
            return yaml.safe_load((self.path / CONFIG).read_text())
        except FileNotFoundError:
            return None

    def scores(self) -> dict[str, Any] | None:
        """What :meth:`finish` wrote; None where the run is not finished."""
        try:
            return json.loads((self.path / SCORES).read_text())
        except FileNotFoundError:
            return None

    def newest_checkpoint(self, first: str | None = None) -> Path | None:
        """What the run goes on from; None for its beginning. A file that cannot be read is passed over, with a
        warning.

        Args:
            first: the checkpoint of another run that this one began from. A run that was stopped before it had
                trained further has only that run's best, which may be older.

        Raises:
            InputError: ``first`` cannot be read.
        """
        from nem_lightning.training import checkpoints  # here, so that --help need not wait for PyTorch

        steps = {}
        for name in CHECKPOINTS:
            path = self.path / "checkpoints" / name
            if path.exists():
                try:
                    steps[path] = checkpoints.read(path)["global_step"]
                except InputError as error:
                    log.warning("%s; it is passed over", str(error).removeprefix("ckpt_path="))
        if first is not None:
            steps[Path(first)] = checkpoints.read_run(first)["global_step"]
        return max(steps, key=steps.__getitem__, default=None)

    def finish(self, scores: dict[str, Any]) -> None:
        """Write ``scores.json``.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_file(self.path / SCORES) as file:
            file.write_text(json.dumps(scores, indent=1) + "\n")

    def reason(self) -> str | None:
        """Why the run failed: the last line of ``error.txt``, if there is one."""
        try:
            return (self.path / ERROR).read_text().splitlines()[-1]
        except (FileNotFoundError, IndexError):
            return None


def _differences(earlier: Any, settings: dict[str, Any]) -> list[str]:
    """The settings in which two configurations differ, but for where things lie and the loggers."""
    first, second = (_comparable(of or {}) for of in (earlier, settings))
    missing = "nothing"
    return [
        f"{name}: {first.get(name, missing)} there, {second.get(name, missing)} here"
        for name in sorted(first.keys() | second.keys())
        if first.get(name, missing) != second.get(name, missing)
    ]


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    places = settings.get("paths") or {}
    found = flat({**settings, "logger": None, "paths": None})
    for folder in (places.get("run_dir"), places.get("data_dir")):
        if folder:  # the run may have been moved
            found = {
                name: value.removeprefix(folder) if isinstance(value, str) else value for name, value in found.items()
            }
    return found


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration by dotted key, such as ``model.num_steps``."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            found[str(name)] = value
    return found
