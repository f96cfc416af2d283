"""A run's folder: which run it belongs to, whether that run is finished, and which checkpoint it goes on from."""

import contextlib
import json
import logging
import math
import shutil
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.runs.settings import differences

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

log = logging.getLogger(__name__)

CONFIG, SCORES, ERROR = "config.yaml", "scores.json", "error.txt"
CHECKPOINTS = ("last.ckpt", "interrupted.ckpt", "best.ckpt")
"""What an unfinished run may go on from: the one of the most steps; of several with as many, the first."""


class RunFolder:
    """The folder of one run.

    The folder belongs to the run whose settings are in its ``config.yaml``: the same run may be started again and
    goes on there; another run is refused. The folder holds ``scores.json`` once the run is finished, and
    ``error.txt`` if the run failed.

    Used with ``with``, it writes into ``error.txt`` why the block failed, unless the folder is another run's, and
    releases the lock on the folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._claimed = self._is_new = self._begun = False

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self._is_new and not self._begun:
            (self.path / CONFIG).unlink(missing_ok=True)  # a corrected command may take the folder
        if isinstance(error, Exception) and (self._claimed or not (self.path / CONFIG).exists()):
            text = "".join(traceback.format_exception(error))
            with contextlib.suppress(OSError):  # such as on a full disk
                (self.path / ERROR).write_text(f"{text}\n{' '.join(str(error).split())}\n")
        if self._lock is not None:
            self._lock.close()  # releases it; so does the end of the process, however it ends

    def claim(self, settings: dict[str, Any], again: bool = True) -> None:
        """Lock the folder for this run until the process ends.

        Args:
            settings: the run's whole configuration, plain values. A run that begins from another checkpoint is
                another run.
            again: whether the same run may go on there.

        Raises:
            InputError: another run is in the folder, another process runs this one, or the folder cannot be written.

        If the run fails before :meth:`begin`, the folder is free again.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            earlier = self._settings()
            if earlier is None:
                with atomic_file(self.path / CONFIG) as file:
                    file.write_text(yaml.safe_dump(settings, sort_keys=False))
                self._is_new = True
        except OSError as error:
            raise InputError(f"hydra.run.dir={self.path}: cannot be written ({error.strerror})") from None
        different = differences(earlier, settings) if earlier is not None else []
        if different or (earlier is not None and not again):
            said = f" ({'; '.join(map(str, different[:3]))})" if different else ""
            raise InputError(f"hydra.run.dir={self.path}: an earlier run is there{said}; choose another folder")
        self._claimed = True
        (self.path / ERROR).unlink(missing_ok=True)

    def begin(self) -> None:
        """Note that the run has begun: the folder stays this run's, even if the run fails now."""
        self._begun = True

    def _acquire(self) -> None:
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held until the run ends)
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"hydra.run.dir={self.path}: another process is running it") from None
        except OSError as error:  # some cluster file systems have no locks
            log.warning("%s: %s; make sure that no two processes run the same run", self.path, error.strerror)

    @property
    def is_running(self) -> bool:
        """Whether a process runs the run; False on Windows, which has no such locks."""
        if fcntl is None:
            return False
        try:
            with open(self.path / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is no lock
            pass
        return False

    def _settings(self) -> dict[str, Any] | None:
        return self._read(CONFIG, yaml.safe_load, "choose another folder, or put the file right")

    def scores(self) -> dict[str, Any] | None:
        """Give what :meth:`finish` wrote; None if the run is not finished.

        Raises:
            InputError: the file is damaged.
        """
        found = self._read(SCORES, json.loads, "delete the file, and the same command writes it anew")
        if found is not None:
            scores = isinstance(found.get("by_step"), list) and isinstance(found.get("headings"), dict)
            require(
                scores, f"{self.path / SCORES}: holds no scores; delete the file, and the same command writes it anew"
            )
        return found

    def _read(self, name: str, parse: Callable[[str], Any], advice: str) -> dict[str, Any] | None:
        try:
            found = parse((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.path / name}: is damaged or cut short ({reason}); {advice}") from error
        require(isinstance(found, dict), f"{self.path / name}: is damaged or cut short (holds no names); {advice}")
        return found

    def newest_checkpoint(self, first: str | None = None) -> Path | None:
        """The checkpoint that the run goes on from; None if it starts from the beginning.

        A checkpoint that cannot be read is left out, with a warning. If the run was killed between saving the best and
        the last checkpoint of an epoch, the best one becomes the last one too.

        Args:
            first: the checkpoint of another run that this one began from. If this run was stopped before it trained
                further, its own checkpoint is only a copy of that run's best, which may be older.

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
                    log.warning("%s; it is left out", str(error).removeprefix("ckpt_path="))
        if first is not None:
            steps[Path(first)] = checkpoints.read_run(first)["global_step"]
        newest = max(steps, key=steps.__getitem__, default=None)
        last, _, best = (self.path / "checkpoints" / name for name in CHECKPOINTS)
        if newest == best:
            with atomic_file(last) as temporary:
                shutil.copyfile(best, temporary)
        return newest

    def finish(self, scores: dict[str, Any]) -> None:
        """Write ``scores.json``.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_file(self.path / SCORES) as file:
            file.write_text(json.dumps(_without_nan(scores), indent=1, allow_nan=False) + "\n")

    def reason(self) -> str | None:
        """Why the run failed: the last line of ``error.txt``; None if there is none."""
        try:
            return (self.path / ERROR).read_text(encoding="utf-8", errors="replace").splitlines()[-1]
        except (OSError, IndexError):
            return None


def _without_nan(value: Any) -> Any:
    """Replace numbers that JSON does not have, NaN and infinity, by None."""
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
