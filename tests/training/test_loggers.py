import subprocess
import sys
import time

import wandb
from conftest import ROOT
from wandb.errors import CommError

from nem_lightning.runs.signals import Preempted
from nem_lightning.training.loggers import WandbLogger, _earlier_runs


def test_offline_without_an_account(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **arguments: False)
    logger = WandbLogger(project="test", save_dir=str(tmp_path))
    assert logger.where().startswith(f"offline; upload with: wandb sync {tmp_path}/wandb/offline-run-")
    logger.finish()


def test_offline_where_wandb_cannot_be_reached(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **arguments: True)
    original, modes = wandb.init, []

    def unreachable(**arguments):
        modes.append(arguments.get("mode"))
        if arguments.get("mode") != "offline":
            raise CommError("no answer\nfrom the server")
        return original(**arguments)

    monkeypatch.setattr(wandb, "init", unreachable)
    logger = WandbLogger(project="test", save_dir=str(tmp_path))
    with caplog.at_level("WARNING"):
        assert logger.where().startswith("offline; upload with: wandb sync")
    assert modes == [None, "offline"]
    assert "W&B cannot be reached (no answer); this run is logged offline" in caplog.text
    logger.finish()


def test_the_variable_is_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "login", None)  # must not be called
    logger = WandbLogger(project="test", save_dir=str(tmp_path))
    assert logger.where() == "disabled"
    logger.finish()


def test_how_a_run_ended_is_shown(tmp_path, monkeypatch):
    ended, finish = [], wandb.finish
    monkeypatch.setattr(wandb, "finish", lambda exit_code: (ended.append(exit_code), finish(exit_code)))
    for name, error in (("fine", None), ("failed", ValueError()), ("stopped", Preempted(15))):
        logger = WandbLogger(project="test", save_dir=str(tmp_path / name), offline=True)
        monkeypatch.setattr(type(logger.experiment), "mark_preempting", lambda run: ended.append("preempted"))
        logger.finish(error)
    assert ended == [0, 1, "preempted", 1]


def test_each_run_of_a_process_is_its_own_and_goes_on_in_its_folder(tmp_path):
    ids, offline = {"one": [], "two": []}, "upload with: wandb sync"
    for name in ("one", "two", "one"):
        logger = WandbLogger(project="test", save_dir=str(tmp_path / name), name=name, offline=True)
        ids[name].append(logger.experiment.id)
        parts = tmp_path / name / "wandb" / ("offline-run-*-" + logger.experiment.id)
        assert (f"{offline} {parts}" in logger.where()) == (len(ids[name]) == 2)
        logger.finish()
        time.sleep(1.1)  # W&B names folders by the second
    assert ids["one"][0] == ids["one"][1] != ids["two"][0]
    assert len(list(tmp_path.glob(f"one/wandb/offline-run-*-{ids['one'][0]}"))) == 2


def test_ids_with_hyphens(tmp_path):
    """A user may name runs as he likes by ``WANDB_RUN_ID``."""
    for name in ("offline-run-20261130_120001-my-run-1", "run-20261130_120002-abc", "run-20261130_115959-run-0"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-20261130_120002-abc")
    assert _earlier_runs(str(tmp_path)) == ["run-0", "my-run-1", "abc"]


def test_runs_of_a_sweep_have_ids_of_their_own_whatever_the_variable_says(tmp_path, monkeypatch):
    wandb.teardown()  # W&B reads the environment once a process
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    ids = []
    for name, group in (("alone", None), ("one", "sweep"), ("two", "sweep")):
        logger = WandbLogger(project="test", save_dir=str(tmp_path / name), group=group, offline=True)
        ids.append(logger.experiment.id)
        logger.finish()
    wandb.teardown()
    assert ids[0] == "mine" and len(set(ids)) == 3


RUN_WITHOUT_WANDB = """
import os, signal, subprocess, sys, time
from nem_lightning.training.loggers import WandbLogger
from nem_lightning.runs.signals import Preempted

logger = WandbLogger(project="test", save_dir=sys.argv[1], offline=True)
logger.experiment
find = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
(service,) = subprocess.run(find, capture_output=True).stdout.split()
os.kill(int(service), signal.SIGTERM)
time.sleep(1)
for step in range(50):
    logger.log_metrics({"loss": 1.0}, step)
logger.finalize("success")
logger.finish(Preempted(15))
print("saved")
"""


def test_a_run_outlives_wandb(tmp_path):
    """SLURM stops all processes of a job, W&B's service included."""
    command = [sys.executable, "-c", RUN_WITHOUT_WANDB, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0 and "saved" in done.stdout, done.stderr
    assert done.stderr.count("W&B failed (") == 1
