"""If Lightning, W&B or Hydra refuses a setting, one line says so before the folder is taken. Also: unusual paths."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMOKE, TINY, Command, refusal
from conftest import ROOT
from fake_wandb import FakeWandb

REFUSED = {
    "trainer.max_epochs=abc": "trainer.max_epochs=abc: must be an integer",
    "trainer.max_epochs=1.5": "trainer.max_epochs=1.5: must be an integer",
    "trainer.accelerator=gpu": "trainer: ",
    "trainer.accelerator=mars": "trainer: ",
    "+trainer.precison=16": "unexpected keyword argument 'precison'",
    "trainer.precision=abc": "trainer.precision=abc: must be ",
    "trainer.devices=abc": "trainer: ",
    "+trainer.max_time=abc": "callbacks.timer: ",
    "+trainer.enable_progress_bar=abc": "trainer.enable_progress_bar=abc: must be a valid boolean",
    "callbacks.early_stopping.patience=abc": "callbacks.early_stopping.patience=abc: must be a valid integer",
    "callbacks.best_checkpoint.monitor=3": "callbacks.best_checkpoint.monitor=3: must be a valid string",
    "logger.csv.flush_logs_every_n_steps=abc": "logger.csv.flush_logs_every_n_steps=abc: must be a valid integer",
    "trainer.strategy=abc": "trainer: ",
    "trainer.strategy=ddp_spawn": "trainer.strategy: scores do not come back from processes that are spawned",
    "trainer.strategy=ddp_fork": "trainer.strategy: scores do not come back from processes that are spawned",
    "trainer.limit_train_batches=abc": "trainer.limit_train_batches=abc: must be",
    "trainer.limit_val_batches=-1": "trainer",
    "trainer.log_every_n_steps=abc": "trainer.log_every_n_steps=abc: must be an integer",
    "+trainer.accumulate_grad_batches=abc": "trainer.accumulate_grad_batches=abc: must be an integer",
    "+trainer.check_val_every_n_epoch=abc": "trainer",
    "+trainer.val_check_interval=abc": "trainer: Invalid time format for `val_check_interval`",
    "+trainer.val_check_interval=1000000": "trainer: `val_check_interval`",
    "trainer.gradient_clip_val=abc": "gradient_clip_val",
    "trainer.gradient_clip_val=1 trainer.precision=bf16-mixed": "optimizer.fused=true: must be false",
    "callbacks.early_stopping.mode=abc": "callbacks.early_stopping",
    "logger.wandb.tags=[TOO_LONG]": "logger.wandb: ",
    "data.batch_size=abc": "data.batch_size=abc: must be an integer of at least 1",
}


@pytest.fixture(scope="module")
def data(data_dir) -> str:
    return str(data_dir)


@pytest.fixture
def train(tmp_path, data):
    """Run train.py on little data, and give its output, which must not hold a traceback."""

    def finish(*arguments: str, status: int = 0, **environment: str) -> str:
        flags = [argument for argument in arguments if argument == "-m"]  # Hydra reads flags before or after settings
        settings = [argument for argument in arguments if argument != "-m"]
        own = [] if "NEM_DATA_DIR" in environment else [f"paths.data_dir={data}"]
        command = ["train.py", *flags, *TINY, *own, *settings]
        printed = Command(*command, folder=tmp_path, environment=environment).end(status)
        assert "Traceback" not in printed
        return printed

    return finish


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_is_refused_takes_no_folder(data, tmp_path, setting):
    logger = ["logger=wandb"] if setting.startswith("logger.wandb") else []
    own = [*TINY, *logger, f"paths.data_dir={data}", *setting.replace("TOO_LONG", 80 * "x").split()]
    assert REFUSED[setting] in refusal("train", *own, folder=tmp_path)
    assert not (tmp_path / "here" / "config.yaml").exists()
    assert not (tmp_path / "here" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.num_components=0"], "model.num_components=0: must be an integer of at least 1"),
        (["model.num_steps=0"], "model.num_steps=0: must be an integer of at least 1"),
        (["model.smoothing=-1"], "model.smoothing=-1: must be a number of at least 0"),
        (["model.loss.prior=a"], "model.loss.prior=a: must lie in [0, 1]"),
        (["model.loss.step_weights=[1,2]"], "model.loss.step_weights: has 2 weights, must have one for each of the 3"),
        (["seed=-1"], "seed=-1: must be an integer of at least 0"),
        (["data.size=5"], "data.size=5: must be an integer of at least 12"),
        (["data=files", "data.path=nowhere"], "data.path=nowhere: no such file or folder"),
        (["data=files"], "data.path: Missing mandatory value"),
        (["data=voc", "data.devkit=nowhere"], "nowhere/VOC2012: no such folder; set data.devkit"),
        (
            ["data=voc", "model.likelihood.binary=true", "model.loss.likelihood.binary=true"],
            "data: has real values in [0, 1], but this model takes pixels of 0 and 1",
        ),
        (["data=voc", "model.likelihood.sigma=100"], "model.smoothing=1e-06: swamps the likelihood"),
        (["module.decay=no"], "module.decay=no: must be true or false"),
        (["model.fast=yes"], "model.fast=yes: must be auto, true or false"),
        (["model.init=kmeans"], "model.init='kmeans': must be one of noise, bright_regions"),
        (["+optimizer.momentum=1"], "unexpected keyword argument 'momentum'"),
        (
            ["callbacks.early_stopping.monitor=val/foo"],
            "callbacks.early_stopping.monitor=val/foo: must be one of val/ami",
        ),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path=nowhere.ckpt: no such file"),
        (["optimizer.lr=inf"], "the loss is not finite at step"),
    ],
)
def test_bad_settings_get_one_line(tmp_path, data_dir, arguments, message):
    line = refusal("train", *SMOKE, f"paths.data_dir={data_dir}", *arguments, folder=tmp_path)
    assert message in line and "\n" not in line
    assert not (tmp_path / "here" / "checkpoints").exists()
    if "inf" not in arguments[0]:  # refused before any training, so the corrected command may use the folder
        assert not (tmp_path / "here" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.num_frames=2", "frames: 2 a sequence; must be 1 (still images) or at least 4 for num_steps=3"),
        (
            "model=reconstruction_clustering",
            "frames: 21 a sequence; ReconstructionClustering takes still images only",
        ),
    ],
)
def test_frames_that_the_model_cannot_take(tmp_path, setting, message):
    assert message in refusal("train", *SMOKE, "data=flying_shapes", setting, folder=tmp_path)
    assert not (tmp_path / "here" / "config.yaml").exists()


def test_bad_settings_of_evaluate_get_one_line(tmp_path, data_dir):
    best = ROOT / "results" / "checkpoints" / "rnn_em_seed0.ckpt"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "shapes.h5").touch()
    (tmp_path / "config.yaml").write_text("seed: 0")
    for arguments, message in (
        ([f"ckpt_path={best}", "data.size=20"], "this model takes (1, 28, 28)"),
        ([f"ckpt_path={best}", "split=all"], "split=all: must be one of train, val, test"),
        (
            [f"ckpt_path={best}", "data=flying_shapes", "data.num_frames=5"],
            "frames: 5 a sequence; must be 1 (still images) or at least 11 for num_steps=10",
        ),
        ([f"ckpt_path={best}", "num_steps=0"], "num_steps=0: must be an integer of at least 1"),
        ([], "ckpt_path, model: one of them must be given"),
        ([f"ckpt_path={best}", "model=chance"], "ckpt_path, model: one of them must be given"),
        (["model=nem"], "model: NeuralEM must be trained by train.py; give ckpt_path instead"),
        ([f"ckpt_path={best}", "seed=5000000000"], "seed=5000000000: must be less than 2^32"),
        (["ckpt_path=config.yaml"], "ckpt_path=config.yaml: not a checkpoint, damaged or cut short"),
        ([f"ckpt_path={best}", "paths.data_dir=broken"], "broken/shapes.h5: cannot be read as HDF5"),
    ):
        line = refusal("evaluate", f"paths.data_dir={data_dir}", *arguments, folder=tmp_path)
        assert message in line and "\n" not in line
    assert not (tmp_path / "here" / "config.yaml").exists()  # the corrected command may use the folder


def test_the_corrected_command_takes_the_folder(train, data, tmp_path):
    (tmp_path / "here").mkdir()  # Hydra makes the folder, too
    for setting in ("trainer.max_epochs=abc", "trainer.accelerator=gpu", "+trainer.precison=16"):
        refusal("train", *TINY, f"paths.data_dir={data}", setting, folder=tmp_path)
    assert "max_epochs=abc" not in (tmp_path / "here" / "error.txt").read_text()  # the file is about the last command
    train("trainer.max_epochs=3", "hydra.run.dir=here")
    assert not (tmp_path / "here" / "error.txt").exists()
    last = "ckpt_path=here/checkpoints/last.ckpt"
    printed = train(last, "trainer.max_epochs=1", "hydra.run.dir=there", status=1)
    assert "max_epochs=1" in printed
    assert not (tmp_path / "there" / "config.yaml").exists()
    train(last, "trainer.max_epochs=4", "hydra.run.dir=there")
    assert json.loads((tmp_path / "there" / "scores.json").read_text())["epochs"] == 4


def test_a_key_that_wandb_refuses_takes_no_folder(train, tmp_path):
    arguments = ["logger=[wandb,csv]", "logger.wandb.offline=false", "hydra.run.dir=here"]
    with FakeWandb() as server:
        server.refuse = True
        online = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "b" * 40}
        for key in ("short", "b" * 40):
            printed = train(*arguments, status=1, **{**online, "WANDB_API_KEY": key})
            assert "logger.wandb: " in printed and not (tmp_path / "here" / "config.yaml").exists()
    train(*arguments[:1], "hydra.run.dir=here")


def test_a_folder_with_all_that_rich_hydra_and_the_shell_read_into_a_name(train, tmp_path):
    sweep = "my [old] runs, a=b {c}"
    printed = train("-m", f"hydra.sweep.dir='{sweep}'", "seed=0", "trainer.max_epochs=0.5", status=1)
    assert f"Sweep {sweep}" in printed and "0 of 1 runs finished." in printed
    (hint,) = [line.partition(" and ")[2] for line in printed.splitlines() if line.startswith("To finish the others")]
    printed = train("-m", *shlex.split(hint), "seed=0")
    assert f"Sweep {sweep}" in printed and "1 of 1 runs finished." in printed
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [sweep]


def test_a_tilde_is_the_home_folder(train, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    train("hydra.run.dir='~/run'", HOME=str(home), NEM_DATA_DIR="~/data")
    assert {path.name for path in home.iterdir()} >= {"data", "run"}
    assert (home / "run" / "scores.json").exists() and len(list((home / "data").iterdir())) == 1
    train("-m", "seed=0", "paths.data_dir='~/data'", "hydra.sweep.dir='~/sweep'", HOME=str(home))
    assert (home / "sweep" / "seed-0" / "scores.json").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name == "~"]


def test_damaged_files_of_a_run_get_one_line(train, data, tmp_path):
    train("hydra.run.dir=here")
    config, scores = (tmp_path / "here" / name for name in ("config.yaml", "scores.json"))
    kept = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*.ckpt")}
    whole = config.read_bytes()
    for path, content in ((config, b"seed: [1"), (config, b"\xff\0"), (scores, b""), (scores, b'{"by_step": [')):
        path.write_bytes(content)
        line = refusal("train", *TINY, f"paths.data_dir={data}", folder=tmp_path)
        assert f"{path.relative_to(tmp_path)}: is damaged or cut short" in line and path.read_bytes() == content
        config.write_bytes(whole)
    assert kept == {path: path.read_bytes() for path in kept}
    scores.unlink()
    train("hydra.run.dir=here")  # as the line advises
    assert json.loads(scores.read_text())["epochs"] == 1


def test_a_terminal_that_lacks_characters_ends_no_run(tmp_path, data):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, f"paths.data_dir={data}", "hydra.run.dir=here"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    printed = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == 0, printed
    assert (tmp_path / "here" / "scores.json").exists() and "Epoch 0" in printed


def test_two_processes_score_each_image_once(tmp_path):
    conf = {
        "model/shade.yaml": "_target_: seam_of_my_own.Shade\nimage_shape: ${pixels.shape}\nbinary: ${pixels.binary}\n"
        "num_components: 2\nnum_steps: 2\nnum_starts: 1\n",
        "data/moving_bars.yaml": "_target_: seam_of_my_own.MovingBars\nnum_frames: 3\nseed: ${seed}\n",
    }
    for name, text in conf.items():
        path = Path(tmp_path / "my" / name)
        path.parent.mkdir(parents=True)
        path.write_text(text)
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    given = ["--config-dir", "my", "data=moving_bars"]
    train = ["trainer=cpu", "model=shade", "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    Command("train.py", *given, *train, folder=tmp_path, environment=own).end()
    given += ["ckpt_path=run/checkpoints/best.ckpt", "trusted=[seam_of_my_own]", "trainer.accelerator=cpu"]
    for name, processes in (("alone", []), ("together", ["trainer=ddp", "trainer.devices=2"])):
        evaluate = [*given, *processes, f"hydra.run.dir={name}"]
        printed = Command("evaluate.py", *evaluate, folder=tmp_path, environment=own).end()
        assert printed.count("by EM step") == 1 and "Traceback" not in printed
    alone, together = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("alone", "together"))
    assert together["num_images"] == alone["num_images"] == 32
    for one, other in zip(alone["by_step"], together["by_step"], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
