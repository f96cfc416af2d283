"""The command line as a user types it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import SMOKE, Command, refusal
from conftest import ROOT

from reproduce import shipped


@pytest.fixture
def at(tmp_path, data_dir):
    """Start a script in an empty folder."""

    def start(script: str, *arguments: str) -> Command:
        return Command(script, *arguments, folder=tmp_path, environment={"NEM_DATA_DIR": str(data_dir)})

    return start


@pytest.fixture
def run(at):
    """Run a script, and give its output. Its exit status must be ``status``."""

    def finish(script: str, *arguments: str, status: int = 0) -> str:
        return at(script, *arguments).end(status)

    return finish


@pytest.fixture
def shell(tmp_path, data_dir):
    """Run a script in a new Python, and give its output."""

    def finish(script: str, *arguments: str) -> str:
        environment = {"NEM_DATA_DIR": str(data_dir)}
        return Command(script, *arguments, folder=tmp_path, environment=environment, new_python=True).end()

    return finish


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    own = {"NEM_DATA_DIR": str(data_dir)}
    Command("train.py", *SMOKE, "hydra.run.dir=here", folder=folder, environment=own).end()
    return folder / "here"


@pytest.fixture
def here(finished, tmp_path) -> Path:
    """A copy of the finished run, in the folder that commands run in."""
    return shutil.copytree(finished, tmp_path / "here")


def only(paths) -> Path:
    (path,) = paths
    return path


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.time() + 120
    while not list(folder.glob(pattern)):
        assert time.time() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_does_not_wait_for_what_it_does_not_need(script, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"python {script}" in done.stdout and "Examples" in done.stdout
    assert (
        "data: bars, corners, files, flying_mnist, flying_shapes, mnist_shape, multi_mnist, shapes, voc, voc_features, "
        "voc_places" in done.stdout
    )
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not imported & {"torch", "pytorch_lightning", "matplotlib", "wandb", "scipy", "h5py"}


def test_train_then_evaluate_with_another_k_and_t(run, shell, tmp_path):
    printed = run("train.py", "experiment=smoke", "trainer.accelerator=cpu", "model.num_components=4")
    folder = only(tmp_path.glob("outputs/*_rnn_em_shapes_seed0"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["num_components"] == 4 and config["model"]["num_steps"] == 3
    best = folder / "checkpoints" / "best.ckpt"
    offline = only((folder / "wandb").glob("offline-run-*"))
    for place in (folder, best, folder / "groupings.png", f"wandb sync {offline}"):
        assert str(place) in printed
    assert "Traceback" not in printed and "Warning" not in printed

    printed = shell("evaluate.py", f"ckpt_path={best}", "num_components=5", "num_steps=4", "num_starts=2", "split=val")
    scores = json.loads(only(tmp_path.glob("outputs/evaluations/*/scores.json")).read_text())
    assert len(scores["by_step"]) == 4 and scores["num_components"] == 5
    assert scores["split"] == "val" and scores["num_images"] == 300 and "Traceback" not in printed
    assert f"{scores['by_step'][3]['ami_max']:.4f}" in printed and "K=5, 300 val images of Shapes" in printed
    assert "these are not the data of the training" not in printed
    assert scores["num_starts"] == 2 and "the best of 2 starts" in printed
    assert only(tmp_path.glob("outputs/evaluations/*/groupings.png")).stat().st_size > 1000


def test_a_sweep_gives_each_run_its_own_folder_and_wandb_run(run, tmp_path):
    run("train.py", "-m", "experiment=smoke", "trainer.accelerator=cpu", "seed=0,1", "model.num_steps=1,2")
    sweep = only((tmp_path / "outputs" / "sweeps").iterdir())
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert len(folders) == 4
    seen = set()
    for folder in folders:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        seen.add((config["seed"], config["model"]["num_steps"]))
        assert config["logger"]["wandb"]["group"] == sweep.name
        assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 5
        recorded = only(folder.glob("wandb/offline-run-*/run-*.wandb")).read_bytes()
        assert sweep.name.encode() in recorded and b"test/ami_max" in recorded
    assert seen == {(seed, steps) for seed in (0, 1) for steps in (1, 2)}


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(at, run, tmp_path):
    process = at("train.py", *SMOKE, "trainer.max_epochs=1000")
    wait_for(tmp_path, "outputs/*/checkpoints/last.ckpt")
    process.send_signal(signal.SIGINT)
    printed = process.end(128 + signal.SIGINT)
    interrupted = only(tmp_path.glob("outputs/*/checkpoints/interrupted.ckpt"))
    assert f"hydra.run.dir={interrupted.parent.parent}" in printed and "Traceback" not in printed
    saved = torch.load(interrupted, weights_only=True)
    assert saved["global_step"] >= 5

    epochs = saved["epoch"] + 2
    time.sleep(1)  # a folder is named by the second
    run("train.py", *SMOKE, f"ckpt_path={interrupted}", f"trainer.max_epochs={epochs}")
    folders = sorted(path.parent for path in tmp_path.glob("outputs/*/checkpoints"))
    assert len(folders) == 2  # the resumed run has a folder of its own
    assert torch.load(folders[1] / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == epochs - 1


def test_the_same_seed_gives_the_same_run(run, here, tmp_path):
    run("train.py", *SMOKE, "seed=0", "hydra.run.dir=there")
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("here", "there")
    )
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])


@pytest.mark.parametrize("change", ["callbacks.best_checkpoint=null", "callbacks.best_checkpoint.monitor=null"])
def test_a_run_in_double_precision_whose_checkpoints_watch_no_score(run, tmp_path, change):
    run("train.py", *SMOKE, change, "trainer.precision=64-true")
    scores = json.loads(only(tmp_path.glob("outputs/*/scores.json")).read_text())
    assert scores["best_score"] is None and len(scores["by_step"]) == 3
    assert only(tmp_path.glob("outputs/*/gallery.png")).stat().st_size > 1000


def test_no_earlier_run_is_overwritten(run, here):
    before = {path: path.read_bytes() for path in here.rglob("*") if path.suffix in {".ckpt", ".yaml"}}
    printed = run("train.py", *SMOKE, "hydra.run.dir=here", "seed=1", status=1)
    assert "hydra.run.dir=" in printed and "an earlier run is there (" in printed
    assert "seed: 0 there, 1 here" in printed and "choose another folder" in printed
    assert before == {path: path.read_bytes() for path in before}


def test_a_checkpoint_that_does_not_fit_gets_one_line(finished, tmp_path, data_dir):
    shutil.copytree(finished, tmp_path / "there")
    for setting, mismatch in (
        ("data.size=20", "is (784,) in the checkpoint, must be (400,)"),
        ("model=nem", "is (784,) in the checkpoint, must be none"),
        ("model.m_step.hidden_size=20", "is (784, 250) in the checkpoint, must be (784, 20)"),
    ):
        given = [f"paths.data_dir={data_dir}", "ckpt_path=there/checkpoints/last.ckpt", setting]
        line = refusal("train", *SMOKE, *given, folder=tmp_path)
        assert "ckpt_path=there/checkpoints/last.ckpt: does not fit this model: model.m_step." in line
        assert mismatch in line and "\n" not in line


def test_a_checkpoint_of_weights_alone_is_for_evaluate(run, here, tmp_path):
    """The checkpoints in ``results/checkpoints/`` are of this kind."""
    shipped.compact(here / "checkpoints" / "best.ckpt", tmp_path / "shipped.ckpt")
    printed = run("train.py", *SMOKE, "ckpt_path=shipped.ckpt", status=1)
    assert "ckpt_path=shipped.ckpt: holds weights alone, no state of training" in printed
    assert "Traceback" not in printed and not list(tmp_path.glob("outputs/*/config.yaml"))
    run("evaluate.py", "ckpt_path=shipped.ckpt", "trainer.limit_test_batches=1")


def test_going_on_with_a_finished_run_scores_it_again(run, here, tmp_path):
    printed = run("train.py", *SMOKE, "hydra.run.dir=there", "ckpt_path=here/checkpoints/last.ckpt")
    assert str(tmp_path / "there" / "checkpoints" / "best.ckpt") in printed  # copied from the first run
    one, other = (tmp_path / name / "checkpoints" / "best.ckpt" for name in ("here", "there"))
    assert one.read_bytes() == other.read_bytes()


def test_sigterm_leaves_a_checkpoint(at, tmp_path):
    process = at("train.py", *SMOKE, "trainer.max_epochs=1000")
    wait_for(tmp_path, "outputs/*/checkpoints/last.ckpt")
    process.send_signal(signal.SIGTERM)
    printed = process.end(128 + signal.SIGTERM)
    assert "To go on: the same command" in printed and "Traceback" not in printed
    only(tmp_path.glob("outputs/*/checkpoints/interrupted.ckpt"))


def test_two_processes_stop_together_and_go_on(at, run, tmp_path):
    """On sequences; other tests have stills."""
    small = ["data=flying_shapes", "data.size=12", "data.num_objects=1", "model.num_steps=2"]
    small.append("model.m_step.hidden_size=10")
    few = ["trainer.limit_train_batches=20", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
    processes = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.log_every_n_steps=3"]
    arguments = [*small, *few, *processes, "trainer.max_epochs=4", "model.num_starts=2", "logger=none"]
    printed = run("train.py", *arguments, "hydra.run.dir=undisturbed")
    assert "Traceback" not in printed and printed.count("Test scores, by EM step") == 1
    whole = torch.load(tmp_path / "undisturbed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert whole["global_step"] == 4 * 20  # each process has its own batches
    process = at("train.py", *arguments, "hydra.run.dir=stopped")
    wait_for(tmp_path, "stopped/checkpoints/last.ckpt")
    process.send_signal(signal.SIGTERM)
    printed = process.end(128 + signal.SIGTERM)
    saved = torch.load(tmp_path / "stopped" / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert saved["global_step"] % 20 % 3 == 1  # the processes look for signals after such a step
    printed = run("train.py", *arguments, "hydra.run.dir=stopped")
    assert "goes on from" in printed
    for name in ("last", "best"):
        one, other = (
            torch.load(tmp_path / folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for folder in ("undisturbed", "stopped")
        )
        assert one["global_step"] == other["global_step"]
        assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])


@pytest.mark.parametrize("setting", ["strategy=ddp", "devices=2", "num_nodes=2"])
def test_a_sweep_that_would_replay_itself_is_refused(run, setting):
    printed = run("train.py", "-m", *SMOKE, f"++trainer.{setting}", "seed=0,1", status=1)
    assert f"trainer.{setting}: not in a sweep with hydra/launcher=basic" in printed


def test_swept_paths_make_no_nested_folders(run, tmp_path):
    run("train.py", "-m", *SMOKE, "seed=0", "paths.output_dir=a/b/c", f"hydra.sweep.dir={tmp_path}/sweep")
    assert only(path for path in (tmp_path / "sweep").iterdir() if path.is_dir()).name == "seed-0"
    assert only((tmp_path / "sweep").glob("*/config.yaml"))


def test_other_data_than_in_training_are_said(run, tmp_path):
    small = ["data.size=12", "data.num_objects=1", "model.m_step.hidden_size=10", "data.batch_size=32"]
    run("train.py", *SMOKE, *small, "hydra.run.dir=here")
    command = ["evaluate.py", "ckpt_path=here/checkpoints/best.ckpt", "data.size=12", "trainer.limit_test_batches=1"]
    assert "data.num_objects: 1 in training, 3 here" in run(*command)
    assert "not the data of the training" not in run(*command, "data.num_objects=1")
    printed = run(*command[:2], "data=corners", status=1).replace("\n", " ")
    assert "ShapesDataModule in training, CornersDataModule here; data=... chooses others" in printed


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    printed = run("train.py", *SMOKE, "paths.output_dir=file", status=1)
    assert "hydra.run.dir=file/" in printed and "cannot be written (Not a directory)" in printed
    assert "Traceback" not in printed
    printed = run("train.py", "-m", *SMOKE, "paths.output_dir=file", status=1)
    assert "hydra.sweep.dir=file/" in printed and "Traceback" not in printed
