"""Runs ``train.py`` and ``evaluate.py`` as from a shell."""

import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import python_server
import read_once  # noqa: F401 (Hydra then parses each file once)
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

import evaluate
import train
from nem_lightning.runs import command_line
from nem_lightning.runs.folder import RunFolder

TINY = [
    "trainer=cpu",
    "logger=csv",
    "data.size=12",
    "data.num_objects=1",
    "model.m_step.hidden_size=10",
    "model.num_starts=2",
    "model.num_steps=2",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
]
"""Settings of train.py with which a run takes a second."""
SMOKE = ["experiment=smoke", "logger=none", "trainer.accelerator=cpu"]
"""The same with images and units as in a real run."""


class Command:
    """Starts a command in a process of its own.

    Args:
        script: "train.py", "evaluate.py" or "-m".
        arguments: as typed.
        folder: where the command runs; its output goes to a file in this folder.
        environment: variables for this command only.
        new_python: whether the process, and the processes that it starts, import everything, as they do for a user.
            Otherwise they are forked (``python_server.py``), which is quicker.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        new_python: bool = False,
    ) -> None:
        numbers = (int(path.suffix[1:]) for path in folder.glob(".printed.*"))
        self._printed = folder / f".printed.{max(numbers, default=0) + 1}"
        own = {"WANDB_MODE": "offline", "COLUMNS": "120", "PYTHONWARNINGS": "", **(environment or {})}
        python = python_server.NEW_PYTHON if new_python else str(python_server.QUICK_PYTHON)
        if not new_python:
            own |= python_server.variables()
        inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # from other tests
        command = [python, script if script == "-m" else str(ROOT / script), *arguments]
        with open(self._printed, "w") as printed:
            self._process = subprocess.Popen(
                command, cwd=folder, env=inherited | own, stdout=printed, stderr=subprocess.STDOUT
            )

    @property
    def is_alive(self) -> bool:
        """Whether the command still runs."""
        return self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send a signal to the command."""
        self._process.send_signal(number)

    def end(self, status: int = 0, timeout: float = 900) -> str:
        """Wait until the command ends, and give its output. Its exit status must be ``status``."""
        self._process.wait(timeout)  # guards against hanging; machines may be busy
        printed = self._printed.read_text(errors="replace")
        assert self._process.returncode == status, printed
        return printed


def composed(script: str, *overrides: str) -> DictConfig:
    """Give the config that Hydra passes to the script "train" or "evaluate"."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(script, overrides=[*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config.hydra
    return config


def refusal(script: str, *overrides: str, folder: Path) -> str:
    """Run "train" or "evaluate" in this process, in ``folder``/here, and give the error line that must end the run."""
    with contextlib.chdir(folder):
        config = composed(script, *overrides, "paths.run_dir=here")
        run = {"train": train.train, "evaluate": evaluate.evaluate}[script]
        with pytest.raises(CompactHydraException) as raised, RunFolder("here") as here, command_line.one_line_errors():
            run(config, here)
    assert not isinstance(raised.value.__cause__, OmegaConfBaseException)  # Hydra would print it as well
    return str(raised.value)


def runs_in(sweep: Path) -> dict[str, Path]:
    """Give the folders of a sweep's runs, by name."""
    return {path.name: path for path in sorted(sweep.iterdir()) if path.is_dir()}
