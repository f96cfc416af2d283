"""Sweeps as jobs: on a real SLURM of one node, and beside each other on one machine."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import Command
from conftest import ROOT, missing
from slurm_cluster import CannotStart, slurm_cluster

FEW = ["trainer=cpu", "trainer.limit_val_batches=2", "trainer.limit_test_batches=1", "trainer.log_every_n_steps=1"]
JOBS = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]
SMALL = [*FEW, "data.size=12", "data.num_objects=1", "model.num_steps=2", "model.m_step.hidden_size=10"]
SMALL.append("model.num_starts=2")
SEQUENCES = [*FEW, "data=flying_shapes", "data.num_objects=1", "data.num_frames=3", "model.num_steps=2"]
SEQUENCES += ["model.m_step.hidden_size=10", "model.num_starts=2"]
SWEEP = "sweep"


@pytest.fixture(scope="module")
def slurm():
    """The environment of a SLURM cluster."""
    with contextlib.ExitStack() as stack:
        try:
            environment = stack.enter_context(slurm_cluster())
        except CannotStart as error:
            missing(f"SLURM cannot be started: {error}")
        yield environment


@pytest.fixture
def start(tmp_path, data_dir):
    """Start train.py as a sweep of jobs."""

    def process(environment: dict[str, str], *arguments: str) -> Command:
        own = {"NEM_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1", "COLUMNS": "1000", **environment}
        return Command("train.py", "-m", f"hydra.sweep.dir={SWEEP}", *arguments, folder=tmp_path, environment=own)

    return process


def runs_of(sweep: Path) -> list[Path]:
    return sorted(path for path in sweep.iterdir() if path.is_dir() and not path.name.startswith("."))


def assert_a_whole_sweep(sweep: Path, names: list[str]) -> None:
    """Each run has its folder, configuration, checkpoint, scores and W&B run, all in one group."""
    runs = runs_of(sweep)
    assert [run.name for run in runs] == names
    ids = set()
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["logger"]["wandb"]["group"] == sweep.name and config["logger"]["wandb"]["name"] == run.name
        assert f"seed-{config['seed']}" in run.name
        assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 5
        assert len(yaml.safe_load((run / "scores.json").read_text())["by_step"]) == config["model"]["num_steps"]
        (recorded,) = run.glob("wandb/offline-run-*/run-*.wandb")
        assert sweep.name.encode() in recorded.read_bytes()
        ids.add(recorded.stem)
    assert len(ids) == len(runs)


@pytest.mark.parametrize("launcher", ["slurm", "submitit_local"])
def test_a_sweep_of_jobs(request, start, tmp_path, launcher):
    environment = request.getfixturevalue("slurm") if launcher == "slurm" else {}
    jobs = JOBS if launcher == "slurm" else ["hydra/launcher=submitit_local"]
    process = start(environment, *jobs, "experiment=smoke", *FEW, "seed=0", "model.num_steps=1,2")
    printed = process.end()
    assert_a_whole_sweep(tmp_path / SWEEP, ["num_steps-1_seed-0", "num_steps-2_seed-0"])
    assert "2 of 2 runs finished." in printed
    if launcher == "slurm":
        (script,) = (tmp_path / SWEEP).glob(".submitit/*/*_submission.sh")
        for line in ("--array=0-1%2", "--ntasks-per-node=1", "--requeue", "--signal=USR2@120", "--time=240"):
            assert f"#SBATCH {line}\n" in script.read_text()
        assert "gpus" not in script.read_text()
    # The same sweep with another setting: its runs are refused, and named.
    process = start(
        environment, *jobs, "experiment=smoke", *FEW, "seed=0", "model.num_steps=1,2", "trainer.max_epochs=3"
    )
    printed = process.end(1)
    assert "0 of 2 runs finished." in printed and "Traceback" not in printed
    assert printed.partition("Sweep")[2].count("trainer.max_epochs: 1 there, 3 here") == 2


@pytest.mark.parametrize("launcher", ["slurm", "submitit_local"])
def test_a_run_of_several_processes_in_a_sweep(request, start, tmp_path, launcher):
    environment = request.getfixturevalue("slurm") if launcher == "slurm" else {}
    jobs = JOBS if launcher == "slurm" else ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=1"]
    processes = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "hydra.launcher.gpus_per_node=null"]
    process = start(environment, *jobs, "experiment=smoke", *FEW[1:], *processes, "seed=0")
    process.end()
    assert_a_whole_sweep(tmp_path / SWEEP, ["seed-0"])
    logs = "".join(path.read_text() for path in (tmp_path / SWEEP).glob(".submitit/*/*_log.*"))
    assert "MEMBER: 2/2" in logs


def test_a_killed_run_ends_no_sweep(start, tmp_path):
    own = {"PYTHONPATH": str(ROOT / "tests"), "CUDA_VISIBLE_DEVICES": "5"}
    kill = "+callbacks.kill={_target_: callbacks_of_my_own.KillOneSeed, seed: 0}"
    jobs = ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=1"]
    process = start(own, *jobs, *SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2", kill, "seed=0,1")
    printed = process.end(1)
    assert "was killed" in printed and "1 of 2 runs finished." in printed and "Traceback" not in printed
    assert [run.name for run in runs_of(tmp_path / SWEEP) if (run / "scores.json").exists()] == ["seed-1"]
    assert (tmp_path / SWEEP / "seed-1" / "gpus").read_text() == "5"  # the value in the process that started the sweep


def test_devices_must_be_a_number_in_a_sweep_of_jobs(start, tmp_path):
    process = start({}, *JOBS, "trainer=ddp", "seed=0,1")
    assert "trainer.devices=auto: must be a number" in process.end(1)


@pytest.mark.parametrize("small", [SMALL, SEQUENCES], ids=["stills", "sequences"])
def test_a_job_that_is_requeued_and_killed_ends_as_if_it_had_not_been(slurm, start, tmp_path, small):
    """The job is preempted (scontrol requeue), told of its time limit (SIGUSR2), killed, and submitted again."""
    settings = [*small, "trainer.max_epochs=16", "trainer.limit_train_batches=5", "seed=0"]
    settings.append("callbacks.log_groupings.num_images=1")
    settings.append("callbacks.early_stopping.patience=1000")  # so that the run is still training when it is stopped
    scontrol = Scontrol({**os.environ, **slurm})
    run = tmp_path / SWEEP / "seed-0"
    start({}, *settings).end()
    undisturbed = run.rename(tmp_path / "undisturbed")

    submitted = start(slurm, *JOBS, *settings)
    epochs = epochs_when_past(run, 2)
    job = scontrol.running_job()
    scontrol("requeue", job)
    scontrol.start_now(job)
    interrupted = run / "checkpoints" / "interrupted.ckpt"
    epochs = epochs_when_past(run, epochs + 3)
    assert torch.load(interrupted, weights_only=True)["global_step"] > 0

    subprocess.run(["scancel", "--signal=USR2", job], env=scontrol.environment, check=True)
    scontrol.wait_until(job, "PENDING")
    (log,) = (tmp_path / SWEEP).glob(".submitit/*/*_0_log.err")
    scontrol.start_now(job)
    epochs_when_past(run, epochs + 3)
    assert "Requeued job" in log.read_text() + log.with_suffix(".out").read_text()

    (step,) = [
        pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and f"SLURM_JOB_ID={job}\0" in environ(pid)
        and b"submitit.core._submit" in (pid / "cmdline").read_bytes() and b"srun" not in (pid / "cmdline").read_bytes()
    ]  # fmt: skip
    os.kill(int(step.name), signal.SIGKILL)
    submitted.send_signal(signal.SIGKILL)
    submitted.end(-signal.SIGKILL)
    scontrol.wait_until(job, "FAILED")
    start(slurm, *JOBS, *settings).end()

    for name in ("last", "best"):
        one, other = (torch.load(of / "checkpoints" / f"{name}.ckpt", weights_only=True) for of in (run, undisturbed))
        assert one["global_step"] == other["global_step"]
        assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in other["state_dict"])
    one, other = (yaml.safe_load((of / "scores.json").read_text()) for of in (run, undisturbed))
    assert one["by_step"] == other["by_step"] and one["best_score"] == other["best_score"]
    assert runs_of(tmp_path / SWEEP) == [run]
    ids = {path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")}
    assert len(ids) == 1 and len(list(run.glob("wandb/offline-run-*"))) == 4  # four processes, one W&B run
    firsts = [int(read_csv(run / "csv" / f"version_{i}")[0]["step"]) for i in range(4)]
    assert firsts[0] == 0 and all(firsts[i] > firsts[i - 1] for i in (1, 2, 3))  # each went on from the one before


def read_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def environ(process: Path) -> str:
    try:
        return (process / "environ").read_text(errors="replace")
    except OSError:
        return ""


def epochs_when_past(run: Path, epochs: int) -> int:
    """Wait until the run is past this number of epochs, and give the number that it has reached."""
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(FileNotFoundError):
            done = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
            if done > epochs:
                return done
        assert time.monotonic() < deadline
        assert not (run / "scores.json").exists()
        time.sleep(0.1)


class Scontrol:
    """Reads and changes SLURM's jobs."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __call__(self, *arguments: str) -> str:
        command = ["scontrol", *arguments]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def running_job(self) -> str:
        command = ["squeue", "-h", "-t", "RUNNING", "-o", "%A"]
        (job,) = subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True
        ).stdout.split()
        return job

    def wait_until(self, job: str, state: str) -> None:
        deadline = time.monotonic() + 60
        while (found := re.search(r"JobState=(\w+)", self("show", "job", job))) is None or found[1] != state:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def start_now(self, job: str) -> None:
        """Start a requeued job. SLURM itself would wait two minutes, to hear of the end of the job's first process."""
        self.wait_until(job, "PENDING")
        time.sleep(2)
        deadline = time.monotonic() + 60
        while "JobState=RUNNING" not in (said := self("show", "job", job)):
            assert time.monotonic() < deadline, said
            with contextlib.suppress(subprocess.CalledProcessError):
                self("update", f"JobId={job}", "StartTime=now")
            time.sleep(0.5)
