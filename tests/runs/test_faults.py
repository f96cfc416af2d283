"""What goes wrong on clusters: runs are killed, disks are full, files are cut short."""

import copy
import ctypes
import functools
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from commands import composed
from conftest import FEW
from fake_wandb import FakeWandb
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from python_server import forking

from nem_lightning.errors import InputError
from nem_lightning.runs.folder import RunFolder
from nem_lightning.training.checkpoints import WholeFiles

SMALL = [
    "trainer=cpu",
    "logger=csv",
    "data.size=12",
    "data.num_objects=1",
    "model.num_steps=2",
    "model.num_starts=2",
    "model.m_step.hidden_size=10",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=20",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=5",
    "paths.run_name=run",
    "paths.sweep_name=null",
]


def log_of(folder: str | Path) -> Path:
    """Give the file with the output of a run's last process."""
    return Path(f"{folder}.log")


@functools.cache
def config_of(*overrides: str) -> DictConfig:
    """Compose the config of a run."""
    return composed("train", *SMALL, *overrides)


def train_in(config: DictConfig, prepare: Callable[[], None]) -> None:
    """Do what train.py does after Hydra has composed the config."""
    import train
    from nem_lightning.runs import command_line

    torch.set_num_threads(1)
    with open(log_of(config.paths.run_dir), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    prepare()
    try:
        with RunFolder(config.paths.run_dir) as run, command_line.one_line_errors():
            train.train(config, run)
    except CompactHydraException as error:  # Hydra ends the program like this, too
        sys.exit(str(error))


def nothing() -> None:
    """Prepare nothing."""


@pytest.fixture(scope="module")
def start():
    """Start :func:`train_in` in a process of its own, in a fraction of the time that ``python train.py`` takes."""
    server = forking()
    first = server.Process(target=nothing)  # starts the process that others are forked from
    first.start()
    first.join()

    def process(folder: Path, data_dir: Path, *overrides: str, prepare: Callable[[], None] = nothing):
        config = copy.deepcopy(config_of(*overrides))
        config.paths.run_dir, config.paths.data_dir = str(folder), str(data_dir)
        started = server.Process(target=train_in, args=(config, prepare))
        started.start()
        return started

    return process


def run_alone(folder: Path, start, data_dir: Path, *overrides: str) -> tuple[Path, float]:
    """Run until the end, and give the folder and the seconds that the run took."""
    began = time.monotonic()
    process = start(folder, data_dir, *overrides)
    process.join()
    assert process.exitcode == 0
    return folder, time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(start, data_dir, tmp_path_factory) -> tuple[Path, float]:
    """The folder of a run that nothing stopped, and the seconds that the run took."""
    return run_alone(tmp_path_factory.mktemp("undisturbed") / "run", start, data_dir)


def assert_same_end(folder: Path, expected: Path) -> None:
    for name in ("last", "best"):
        one, other = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (folder, expected))
        assert one["global_step"] == other["global_step"], name
        for key, weight in other["state_dict"].items():
            assert torch.equal(one["state_dict"][key], weight), (name, key)
    one, other = (yaml.safe_load((run / "scores.json").read_text()) for run in (folder, expected))
    assert one.pop("ckpt_path") != other.pop("ckpt_path")
    assert one.pop("seconds") > 0 and other.pop("seconds") > 0  # measured by the clock, so they differ
    assert one == other


@pytest.mark.parametrize(
    ("number", "times", "overrides"),
    [
        (signal.SIGKILL, 20, []),
        (signal.SIGTERM, 6, []),
        (signal.SIGUSR1, 6, []),
        (signal.SIGKILL, 6, ["data=flying_shapes"]),
    ],
    ids=["SIGKILL", "SIGTERM", "SIGUSR1", "sequences"],
)
def test_runs_stopped_at_random_points_end_as_an_undisturbed_one(
    start, undisturbed, data_dir, tmp_path, number, times, overrides
):
    """A process is stopped at a random time after its start; a run is started again until it is finished."""
    if overrides:
        undisturbed = run_alone(tmp_path / "undisturbed", start, data_dir, *overrides)
    expected, seconds = undisturbed
    points = random.Random(int(number))
    stopped = finished = 0
    while stopped < times or not finished:
        run = tmp_path / f"run{finished}"
        saved = list(run.glob("checkpoints/*.ckpt"))
        process = start(run, data_dir, *overrides)
        process.join(points.uniform(0.0, 1.0) * seconds if stopped < times else None)
        if process.is_alive():
            os.kill(process.pid, number)
            process.join()
        if process.exitcode == 0:
            said = log_of(run).read_text()
            assert ("goes on from" in said or "Finished before" in said) == bool(saved)  # stopped after its last line
            assert_same_end(run, expected)
            finished += 1
        else:
            assert process.exitcode in (-number, 128 + number)
            stopped += 1


def wait_for(path: Path, process) -> None:
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.02)


def die_after_the_first_checkpoints() -> None:
    """Kill the process once it has saved both checkpoints."""
    save = WholeFiles.save_checkpoint

    def save_and_die(self: WholeFiles, checkpoint, path, storage_options=None) -> None:
        save(self, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            os.kill(os.getpid(), signal.SIGKILL)

    WholeFiles.save_checkpoint = save_and_die


@pytest.fixture
def stopped_run(start, data_dir, tmp_path) -> Path:
    """The folder of a run that was killed after its first checkpoints."""
    process = start(tmp_path / "run", data_dir, prepare=die_after_the_first_checkpoints)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    return tmp_path / "run"


def fill_the_disk() -> None:
    """Allow only 10 kB for each file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def test_a_full_disk_leaves_the_checkpoints_before_as_they_were(start, stopped_run, undisturbed, data_dir):
    before = {path: path.read_bytes() for path in (stopped_run / "checkpoints").iterdir()}
    process = start(stopped_run, data_dir, prepare=fill_the_disk)
    process.join()
    assert process.exitcode == 1
    printed = log_of(stopped_run).read_text()
    assert "checkpoints/best.ckpt: cannot be written (" in printed
    assert before == {path: path.read_bytes() for path in (stopped_run / "checkpoints").iterdir()}
    assert "cannot be written" in (stopped_run / "error.txt").read_text().splitlines()[-1]
    start(stopped_run, data_dir).join()  # now the disk has room again
    assert_same_end(stopped_run, undisturbed[0])
    assert not (stopped_run / "error.txt").exists()


def test_a_best_checkpoint_cut_short_after_training_does_not_stop_the_run_from_finishing(start, data_dir, tmp_path):
    """No better checkpoint comes later to replace the damaged one."""
    folder = tmp_path / "run"
    start(folder, data_dir).join()
    (folder / "scores.json").unlink()
    best = folder / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-1000])
    process = start(folder, data_dir)
    process.join()
    assert process.exitcode == 0 and (folder / "scores.json").exists()
    printed = log_of(folder).read_text()
    assert (
        "best.ckpt: not a checkpoint, damaged or cut short" in printed and "scores are of the last weights" in printed
    )


@pytest.mark.parametrize("names", [["last"], ["best"], ["last", "best"]])
def test_a_checkpoint_cut_short_is_passed_over(start, stopped_run, undisturbed, data_dir, names):
    for name in names:
        path = stopped_run / "checkpoints" / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:-1000])
    start(stopped_run, data_dir).join()
    printed = log_of(stopped_run).read_text()
    for name in names:
        assert f"checkpoints/{name}.ckpt: not a checkpoint, damaged or cut short" in printed
    assert_same_end(stopped_run, undisturbed[0])


def test_a_run_that_another_process_runs_is_refused(start, data_dir, tmp_path):
    first = start(tmp_path / "run", data_dir)
    wait_for(tmp_path / "run" / "config.yaml", first)
    with pytest.raises(InputError, match="another process is running it"), RunFolder(tmp_path / "run") as second:
        second.claim({})
    first.join()
    assert first.exitcode == 0 and not (tmp_path / "run" / "error.txt").exists()


def test_a_finished_run_is_left_as_it_is(start, undisturbed, data_dir, tmp_path):
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    process = start(folder, data_dir)
    process.join()
    assert process.exitcode == 0 and "Finished before" in log_of(folder).read_text()
    assert before == {path: path.read_bytes() for path in before}
    process = start(folder, data_dir, "model.num_steps=3")
    process.join()
    assert process.exitcode == 1
    assert "an earlier run is there (model.num_steps: 2 there, 3 here)" in log_of(folder).read_text()
    assert before == {path: path.read_bytes() for path in before}


def use_few_images() -> None:
    """Generate as few images as the tests' own set has."""
    from nem_lightning.datamodules import shapes

    shapes.SPLITS = FEW


def test_two_runs_generate_the_data_at_once(start, undisturbed, tmp_path):
    processes = [start(tmp_path / f"run{i}", tmp_path / "data", prepare=use_few_images) for i in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list((tmp_path / "data").iterdir())) == 1  # no half-written file beside the data
    for i in range(2):
        scores = yaml.safe_load((tmp_path / f"run{i}" / "scores.json").read_text())
        assert scores["by_step"] == yaml.safe_load((undisturbed[0] / "scores.json").read_text())["by_step"]


def test_a_read_only_data_folder(start, data_dir, undisturbed, tmp_path):
    """If the data is there, the run uses it. If not, the run ends with one line that names the folder."""
    empty = tmp_path / "data"
    empty.mkdir()
    (tmp_path / "runs").mkdir()
    folders = (Path(data_dir), empty)
    for folder in folders:
        folder.chmod(0o555)
    try:
        for folder, status in zip(folders, (0, 1), strict=True):
            process = start(tmp_path / "runs" / folder.name, folder, prepare=become_an_ordinary_user)
            process.join()
            assert process.exitcode == status
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert_same_end(tmp_path / "runs" / Path(data_dir).name, undisturbed[0])
    assert (
        f"{empty}: cannot be written (Permission denied); choose another folder"
        in log_of(tmp_path / "runs" / "data").read_text()
    )


def become_an_ordinary_user() -> None:
    """Give up root's right to write everywhere."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capset(2), version 3: no capability at all
        assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0


ONLINE = ("logger=wandb", "logger.wandb.tags=[tiny]")


def go_online(url: str) -> None:
    online = {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "WANDB_FINISH_TIMEOUT": "5"}
    os.environ.update(online)


def test_wandb_that_goes_away_in_the_middle_of_a_run(start, data_dir, undisturbed, tmp_path):
    with FakeWandb() as server:
        process = start(tmp_path / "run", data_dir, *ONLINE, prepare=functools.partial(go_online, server.url))
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
        (created,) = server.runs.values()
        assert created["project"] == "nem-lightning" and created["displayName"] == "run" and created["tags"] == ["tiny"]
    process.join()
    assert process.exitcode == 0
    assert_same_end(tmp_path / "run", undisturbed[0])
    assert len(list(tmp_path.glob("run/wandb/run-*/run-*.wandb"))) == 1  # `wandb sync` can send this file later


def test_a_run_that_goes_on_goes_on_in_wandb(start, data_dir, undisturbed, tmp_path):
    with FakeWandb() as server:
        process = start(tmp_path / "run", data_dir, *ONLINE, prepare=functools.partial(go_online, server.url))
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
        os.kill(process.pid, signal.SIGUSR1)
        process.join()
        assert process.exitcode == 128 + signal.SIGUSR1
        start(tmp_path / "run", data_dir, *ONLINE, prepare=functools.partial(go_online, server.url)).join()
        assert len(server.runs) == 1 and len(list(tmp_path.glob("run/wandb/run-*-*"))) == 2
        sent = "".join(server.sent)
    for what in ("val/ami_max", "val/groupings", "by_step/ami_max", '"preempting":true'):
        assert what in sent
    assert re.search(r'val/ami_max\\":\{\\"(max|last)\\":[-\d.e]+,\\"(max|last)', sent)  # in the summary
    assert_same_end(tmp_path / "run", undisturbed[0])
