"""Runs ``train.py`` and ``evaluate.py`` as from a shell, in processes forked where PyTorch is imported already.

So a command takes a second or two, not the ten that the imports take.
"""

import io
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from conftest import ROOT

PRELOADED = [
    "train",
    "nem_lightning.training.module",
    "nem_lightning.training.callbacks",
    "nem_lightning.training.loggers",
    "nem_lightning.datamodules",
    "nem_lightning.figures",
    "hydra._internal.core_plugins.basic_sweeper",
    "commands",
    "fake_wandb",
    "preloaded",
]

TINY = [
    "trainer=cpu",
    "logger=csv",
    "data.size=12",
    "data.num_objects=1",
    "model.m_step.hidden_size=10",
    "model.num_starts=2",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
]
"""Settings of train.py with which a run takes a second."""


def forking() -> ForkServerContext:
    """Processes that are forked from one that has imported what a run needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Command:
    """A command in a process of its own, which is started at once.

    Args:
        script: "train.py" or "evaluate.py".
        arguments: as typed.
        folder: where it runs; what it prints goes to a file in there.
        environment: variables of its own.
        before: called in the process before the script runs.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        numbers = (int(path.suffix[1:]) for path in folder.glob(".printed.*"))
        self._printed = folder / f".printed.{max(numbers, default=0) + 1}"
        own = {"WANDB_MODE": "offline", "COLUMNS": "120", **(environment or {})}
        arguments_of_run = (script, arguments, str(folder), str(self._printed), own, before)
        self._process: ForkServerProcess = forking().Process(target=_run, args=arguments_of_run)
        self._process.start()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        """Send a signal to it."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, status: int = 0, timeout: float = 900) -> str:
        """Wait until it ends, which must be with this exit status; give what it printed."""
        self._process.join(timeout)  # guards against hanging; machines may be busy
        printed = self._printed.read_text(errors="replace")
        assert self._process.exitcode == status, printed
        return printed


def _run(script, arguments, folder, printed, environment, before) -> None:
    with open(printed, "w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, encoding="utf-8")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
    os.chdir(folder)
    os.environ.pop("WANDB_SERVICE", None)
    os.environ.update(environment)
    sys.argv = [str(ROOT / script), *arguments]
    if before is not None:
        before()
    runpy.run_path(sys.argv[0], run_name="__main__")


def runs_in(sweep: Path) -> dict[str, Path]:
    """The folders of a sweep's runs, by name."""
    return {path.name: path for path in sorted(sweep.iterdir()) if path.is_dir()}
