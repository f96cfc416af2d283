"""The command line as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT

SMOKE = ["experiment=smoke", "logger=none", "trainer.accelerator=cpu"]


@pytest.fixture
def at(tmp_path, data_dir):
    """Start a script in an empty folder."""

    def start(script: str, *arguments: str, **kwargs) -> subprocess.Popen:
        environment = {**os.environ, "NEM_DATA_DIR": str(data_dir), "COLUMNS": "120", "PYTHONWARNINGS": ""}
        command = [sys.executable, str(ROOT / script), *arguments]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **kwargs,
        )

    return start


@pytest.fixture
def run(at):
    """Run a script; gives what it printed. It must end with the exit status ``status``."""

    def finish(script: str, *arguments: str, status: int = 0) -> str:
        process = at(script, *arguments)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == status, printed
        return printed

    return finish


def only(paths) -> Path:
    (path,) = paths
    return path


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help(run, script):
    printed = run(script, "--help")
    assert f"python {script}" in printed and "Examples" in printed and "data: shapes, voc" in printed


def test_train_then_evaluate_with_another_k_and_t(run, tmp_path):
    printed = run("train.py", "experiment=smoke", "trainer.accelerator=cpu", "model.num_components=4")
    folder = only(tmp_path.glob("outputs/*_rnn_em_shapes_seed0"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["num_components"] == 4 and config["model"]["num_steps"] == 3
    best = folder / "checkpoints" / "best.ckpt"
    offline = only((folder / "wandb").glob("offline-run-*"))
    for place in (folder, best, folder / "groupings.png", f"wandb sync {offline}"):
        assert str(place) in printed
    assert "Traceback" not in printed and "Warning" not in printed

    printed = run("evaluate.py", f"ckpt_path={best}", "num_components=5", "num_steps=4", "split=val")
    scores = json.loads(only(tmp_path.glob("outputs/evaluations/*/scores.json")).read_text())
    assert len(scores["by_step"]) == 4 and scores["num_components"] == 5
    assert scores["split"] == "val" and scores["num_images"] == 10_000
    assert f"{scores['by_step'][3]['ami_max']:.4f}" in printed and "K=5" in printed
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
    deadline = time.time() + 120
    while not list(tmp_path.glob("outputs/*/checkpoints/last.ckpt")) and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    interrupted = only(tmp_path.glob("outputs/*/checkpoints/interrupted.ckpt"))
    assert f"ckpt_path={interrupted}" in printed and "Traceback" not in printed
    saved = torch.load(interrupted, weights_only=True)
    assert saved["global_step"] >= 5

    epochs = saved["epoch"] + 2
    run("train.py", *SMOKE, f"ckpt_path={interrupted}", f"trainer.max_epochs={epochs}")
    folders = sorted(path.parent for path in tmp_path.glob("outputs/*/checkpoints"))
    assert len(folders) == 2  # the earlier run is as it was
    assert torch.load(folders[1] / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == epochs - 1


def test_the_same_seed_gives_the_same_run(run, tmp_path):
    for name in ("one", "two"):
        run("train.py", *SMOKE, "seed=0", f"hydra.run.dir={name}")
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two"))
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])


def test_no_earlier_run_is_overwritten(run, tmp_path):
    run("train.py", *SMOKE, "hydra.run.dir=here")
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.suffix in {".ckpt", ".yaml"}}
    printed = run("train.py", *SMOKE, "hydra.run.dir=here", "seed=1", status=1)
    assert "hydra.run.dir=" in printed and "an earlier run is there; choose another folder" in printed
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.num_components=0"], "model.num_components=0: must be an integer of at least 1"),
        (["model.num_steps=0"], "model.num_steps=0: must be an integer of at least 1"),
        (["model.em.smoothing=-1"], "model.em.smoothing=-1: must be 0 or greater"),
        (["data.size=5"], "data.size=5: must be an integer of at least 12"),
        (["data=voc", "data.devkit=nowhere"], "nowhere/VOC2012: no such folder; set data.devkit"),
        (
            ["data=voc", "likelihood@model.em.likelihood=bernoulli"],
            "model.em.likelihood: Bernoulli pixels must be 0 or 1",
        ),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path=nowhere.ckpt: no such file"),
        (["model.optimizer.lr=inf"], "the loss is not finite at step"),
    ],
)
def test_bad_settings_get_one_line(run, arguments, message):
    smoke = [setting for setting in SMOKE if "smoke" not in setting] if "data=voc" in arguments else SMOKE
    printed = run("train.py", *smoke, *arguments, status=1)
    assert message in printed
    assert "Traceback" not in printed


def test_bad_settings_of_evaluate_get_one_line(run, tmp_path):
    run("train.py", *SMOKE, "hydra.run.dir=here")
    best = "here/checkpoints/best.ckpt"
    for arguments, message in (
        ([f"ckpt_path={best}", "data.size=20"], "this model takes (1, 28, 28)"),
        ([f"ckpt_path={best}", "split=all"], "split=all: must be one of train, val, test"),
        ([f"ckpt_path={best}", "num_steps=0"], "num_steps=0: must be an integer of at least 1"),
        (["ckpt_path=here/config.yaml"], "ckpt_path=here/config.yaml: not a checkpoint, or cut short"),
    ):
        printed = run("evaluate.py", *arguments, status=1)
        assert message in printed and "Traceback" not in printed


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    printed = run("train.py", *SMOKE, "paths.output_dir=file", status=1)
    assert "file" in printed and "Not a directory" in printed
