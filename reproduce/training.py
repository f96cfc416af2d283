"""Training through the command that users type, several runs at a time; what was stopped goes on."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from benchmarks.speed import machine
from nem_lightning.files import atomic_file
from nem_lightning.runs.folder import CONFIG, RunFolder, flat
from reproduce.rows import ROOT, Row, settings
from reproduce.scoring import device

RECORD = "reproduce.json"
"""In a run's folder: how long it was trained, and on what machine."""
COMPARED = ("model", "data", "trainer")
_SAVE_SECONDS = 30  # how often a run's time is noted


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Attributes:
        row: what is trained.
        seed: of the run.
        runs: the folder of all runs.
        max_epochs: where to cut it short; None for as long as the row says.
        extra: further overrides of ``train.py``.
    """

    row: Row
    seed: int
    runs: Path
    max_epochs: int | None = None
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.row.name}_seed{self.seed}"

    @property
    def planned_epochs(self) -> int:
        """How many epochs the row has at most."""
        return settings(self.row, self.extra).trainer.max_epochs

    @property
    def epochs(self) -> int:
        """How many this run has at most."""
        return min(self.planned_epochs, self.max_epochs or self.planned_epochs)

    @property
    def folder(self) -> Path:
        """One that is cut short has a folder of its own, as it is another run: where the learning rate decays, it
        does so sooner."""
        return self.runs / self.row.name / f"seed{self.seed}{f'_{self.epochs}epochs' if self._is_cut else ''}"

    @property
    def _is_cut(self) -> bool:
        return self.epochs < self.planned_epochs

    @property
    def command(self) -> str:
        """What a user types to train the same."""
        return f"python train.py {shlex.join(self.arguments)}"

    @property
    def arguments(self) -> list[str]:
        """Of ``train.py``, but for where the run lies and its logger."""
        cut = [f"trainer.max_epochs={self.epochs}"] if self._is_cut else []
        return self.row.arguments(self.seed, [*self.extra, *cut])

    @property
    def best_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def is_finished(self) -> bool:
        return RunFolder(self.folder).scores() is not None and self.best_checkpoint.is_file()

    def config(self) -> dict | None:
        """Its whole configuration; None where it was not begun."""
        path = self.folder / CONFIG
        return yaml.safe_load(path.read_text()) if path.is_file() else None

    def goes_on_from(self) -> Path | None:
        """The last checkpoint of the longest finished run that is the same, but was cut short sooner.

        None where the learning rate decays over the run, so that a longer one is another from its first step on.
        """
        config = self.config()
        if config is not None:  # begun
            return Path(config["ckpt_path"]) if config["ckpt_path"] else None
        if settings(self.row, self.extra).model.decay:
            return None
        shorter = [replace(self, max_epochs=epochs) for epochs in range(1, self.epochs)]
        finished = [run for run in shorter if run.is_finished and not run.differences()]
        return finished[-1].last_checkpoint if finished else None

    def differences(self) -> list[str]:
        """The settings in which the run in the folder is not the one that the row now asks for."""
        found, asked_for = _comparable(self.config()), _comparable(settings(self.row, self.extra))
        found["max_epochs"], asked_for["max_epochs"] = self.config()["trainer"]["max_epochs"], self.epochs
        return different(found, asked_for)


def different(one: Mapping, other: Mapping) -> list[str]:
    """The dotted names of the settings in which two configurations differ."""
    one, other = flat(one), flat(other)
    return [name for name in one | other if one.get(name) != other.get(name)]


def facts(run: Run) -> dict[str, object]:
    """How a finished run was trained: epochs, why it stopped, seconds, machine, settings.

    ``stop`` is "early stopping", "end of the schedule", or "cut short" where ``--max-epochs`` ended it.
    """
    epochs, planned = RunFolder(run.folder).scores()["epochs"], run.planned_epochs
    stop = "early stopping" if epochs < run.epochs else "cut short" if epochs < planned else "end of the schedule"
    record = _record(run.folder)
    return {
        "epochs": epochs,
        "planned_epochs": planned,
        "stop": stop,
        "seconds": record.get("seconds"),
        "trained_on": record.get("machine"),
        "settings": _comparable(run.config()),
    }


def _comparable(config: Mapping) -> dict:
    """What the runs of one row have in common: no seeds, no places, no length."""
    if isinstance(config, DictConfig):
        config = {name: OmegaConf.to_container(config[name], resolve=name != "trainer") for name in COMPARED}
    model = {name: value for name, value in config["model"].items() if name != "seed"}
    data = {name: value for name, value in config["data"].items() if name not in ("seed", "data_dir")}
    limits = {name: value for name, value in config["trainer"].items() if name.startswith("limit_")}
    return {"model": model, "data": data, "trainer": limits}


def _record(folder: Path) -> dict:
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:  # trained by hand
        return {}


class _Started:
    """A process of ``train.py``, and the seconds it has taken, earlier attempts included."""

    def __init__(self, run: Run, threads: int) -> None:
        self.run = run
        earlier = run.goes_on_from()
        before = _record(run.folder) or (_record(earlier.parents[1]) if earlier else {})
        self._before, self._start, self._noted = before.get("seconds", 0.0), time.time(), 0.0
        self._machine = {**machine(device()), "cores": os.cpu_count(), "threads": threads}
        arguments = [*run.arguments, f"hydra.run.dir={run.folder}", "logger=csv"]
        arguments += [f"ckpt_path={earlier}"] if earlier else []
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "COLUMNS": "120"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we ask each run to save and stop, once
            )

    @property
    def log(self) -> Path:
        return self.run.folder.with_suffix(".log")

    @property
    def seconds(self) -> float:
        """Until now, or until it ended: we may have been busy with scores since then."""
        running = self.process.poll() is None
        return self._before + (time.time() if running else self.log.stat().st_mtime) - self._start

    def note(self, now: bool = False) -> None:
        """Write down how long it has been trained, from time to time."""
        if now or self.seconds - self._noted > _SAVE_SECONDS:
            self._noted = self.seconds
            with atomic_file(self.run.folder / RECORD) as file:
                file.write_text(json.dumps({"seconds": round(self.seconds, 1), "machine": self._machine}, indent=1))

    def why(self) -> str:
        """The signal that stopped it; else the last line that it printed, but for Hydra's hint."""
        status = self.process.returncode
        number = -status if status < 0 else status - 128  # the latter is how train.py leaves after SIGTERM
        if number in set(signal.Signals):
            stop = f"was stopped by {signal.Signals(number).name}; the same command goes on with it"
            return f"{stop}; its output: {self.log}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        said = [line for line in lines if line and "HYDRA_FULL_ERROR" not in line]
        return f"failed: {said[-1] if said else self.process.returncode}; its output: {self.log}"


def train(runs: Sequence[Run], jobs: int, say: Callable[[str], None]) -> Iterator[tuple[Run, str | None]]:
    """Train those that are not finished.

    Where the caller stops in between, each process is asked to save and stop, and is waited for; the same runs go on
    later.

    Args:
        runs: what to train, in this order.
        jobs: how many at the same time; each has its share of the cores.
        say: told of what is going on, a line at a time.

    Yields:
        Each run that has ended, and why it failed; None where it is finished.
    """
    waiting = [run for run in runs if not run.is_finished]
    for run in runs:
        if run not in waiting:
            others = ", ".join(run.differences()[:3])
            yield run, f"{run.folder}: was trained with other settings ({others}); move it away" if others else None
    threads = max(1, (os.cpu_count() or 1) // jobs)
    started: list[_Started] = []
    try:
        with _sigterm_as_interrupt():
            while waiting or started:
                while waiting and len(started) < jobs:
                    started.append(_Started(waiting.pop(0), threads))
                    say(f"{started[-1].run.name}: {started[-1].run.command}; its output: {started[-1].log}")
                time.sleep(0.1)
                for one in [one for one in started if one.process.poll() is not None]:
                    started.remove(one)
                    one.note(now=True)
                    yield one.run, None if one.process.returncode == 0 and one.run.is_finished else one.why()
                for one in started:
                    one.note()
    finally:
        for one in started:
            one.process.terminate()
        for one in started:
            say(f"{one.run.name}: is asked to save and stop; the same command goes on with it")
            one.process.wait()
            one.note(now=True)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
