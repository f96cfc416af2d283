"""The results table: its rows, tables from scores, and the whole driver as a user starts it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny import few_shapes

from nem_lightning.datamodules.base import TensorImages
from nem_lightning.errors import InputError
from nem_lightning.training import checkpoints
from reproduce import __main__, rows, scoring, shipping, tables, training
from reproduce.evaluation import Evaluator, row_path


@pytest.mark.parametrize("text", ["x", "", "0,,1", "-1", "1.5"])
def test_seeds_that_are_none(text):
    with pytest.raises(InputError, match=f"--seeds={text}: must be integers"):
        rows.parse_seeds(text)


def test_rows_by_name():
    assert [row.name for row in rows.select("nem,baselines")] == ["nem", "kmeans", "gmm", "components", "chance"]
    assert len(rows.select("all")) == len(rows.ROWS)
    with pytest.raises(InputError, match="there is no row 'recipes'; rows are all, baselines"):
        rows.select("nem,recipes")


def test_rows_compose():
    """Each row is what its title says; the recipe's own T is trained once."""
    for row in rows.ROWS.values():
        if row.is_trained:
            config = rows.settings(row)
            target = config.model.em.m_step._target_.rpartition(".")[2]
            assert target == ("GradientMStep" if row.name == "nem" else "RecurrentMStep")
            if row in rows.EM_STEPS:
                assert config.model.num_steps == int(row.name.removeprefix("recipe_T"))
    own = [row.name for row in rows.EM_STEPS if rows.is_the_recipe_itself(row)]
    assert own in ([], [f"recipe_T{rows.settings(rows.ROWS['recipe']).model.num_steps}"])
    with pytest.raises(InputError, match=r"nem: .*nonsense"):
        rows.settings(rows.ROWS["nem"], ("nonsense=1",))


def test_a_run_that_is_cut_short_has_its_own_folder_and_says_so(tmp_path):
    row = rows.ROWS["nem"]
    whole, cut = (training.Run(row, 1, tmp_path, epochs) for epochs in (9999, 30))
    assert whole.command == "python train.py experiment=nem_shapes seed=1"
    assert cut.command == "python train.py experiment=nem_shapes seed=1 trainer.max_epochs=30"
    assert whole.folder != cut.folder


def write_scores(results: Path, row: str, seed: int, ami: float, **more) -> None:
    """Made-up scores of a row."""
    of_subset = {"images": 8, "scored": 8, "ami_max": ami, "ami_arithmetic": ami, "ari": ami}
    of_subset["reconstruction_error"] = 0.01 * ami if "epochs" in more else None
    of_stage = {subset: of_subset for subset in scoring.SUBSETS}
    scores = {
        "row": row,
        "title": row.upper(),
        "seed": seed,
        "images": 8,
        "scores": {"val": of_stage, "test": of_stage},
    }
    if "epochs" in more:
        more = {
            "command": f"python train.py seed={seed}",
            "seconds": 1800,
            "trained_on": None,
            "weights": "float32",
            **more,
        }
    path = row_path(results, row, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**scores, **more}))


EARLY = {"epochs": 12, "planned_epochs": 500, "stop": "early stopping", "num_steps": 2}
CUT = {"epochs": 3, "planned_epochs": 500, "stop": "cut short", "num_steps": 2}


def test_tables_from_scores(tmp_path):
    write_scores(tmp_path, "kmeans", 0, 0.8)
    for seed, ami in enumerate((0.70, 0.72, 0.77)):
        write_scores(tmp_path, "nem", seed, ami, **(CUT if seed == 2 else EARLY))
        steps = [
            {"ami_max": share * ami, "ami_arithmetic": 0, "ari": 0, "reconstruction_error": 0} for share in (0.5, 1)
        ]
        write_scores(tmp_path, "recipe", seed, ami + 0.1, **EARLY, by_step=steps)
        write_scores(tmp_path, "recipe_T7", seed, ami, **{**EARLY, "num_steps": 7})
        write_scores(tmp_path, "without_noise", seed, ami - 0.2, **EARLY)
    places = tables.write(tmp_path)
    assert all(path.stat().st_size > 100 for path in places.values())
    assert "em_steps.png" in places and "other_k.csv" not in places
    text = places["table"].read_text()
    assert "| KMEANS | 1 | 8 | 0.8000 | 0.8000 | 0.8000 | - |" in text
    assert "| NEM | 3 | 8 | 0.7300 ± 0.0361 |" in text  # sample deviation of 0.70, 0.72, 0.77
    assert "| RECIPE | 3 | 0.8300 ± 0.0361 | 0.8300 ± 0.0361 | 8 | 0.0083 ± 0.0004 |" in text
    assert "| WITHOUT_NOISE | 3 | 0.5300 ± 0.0361 | 0.5300 ± 0.0361 | 8 |" in text
    assert "9.0 ± 5.2 | 2 early stopping, 1 **cut short** after 3 of 500 epochs |" in text
    assert "| `python train.py seed=<seed>` | 0.50 ± 0.00 | not noted | float32 |" in text
    with open(tmp_path / "table.csv") as file:
        found = {(line["row"], line["split"], line["subset"]): line for line in csv.DictReader(file)}
    line = found["nem", "validation", "overlap"]
    assert float(line["ami_max_mean"]) == pytest.approx(0.73) and float(line["ami_max_std"]) == pytest.approx(0.0360555)
    with open(tmp_path / "em_steps.csv") as file:
        lines = [
            (line["row"], int(line["steps"]), round(float(line["ami_max_mean"]), 4)) for line in csv.DictReader(file)
        ]
    assert lines == [("recipe", 1, 0.365), ("recipe", 2, 0.73), ("recipe_T", 2, 0.83), ("recipe_T", 7, 0.73)]


def test_seeds_of_different_settings_make_no_row(tmp_path):
    write_scores(tmp_path, "nem", 0, 0.7, **EARLY, settings={"model": {"num_steps": 5}})
    write_scores(tmp_path, "nem", 1, 0.7, **EARLY, settings={"model": {"num_steps": 6}})
    with pytest.raises(InputError, match=r"nem: seeds 0 and 1 .* different settings \(model.num_steps\)"):
        tables.write(tmp_path)


def test_scores_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no scores in it"):
        tables.write(tmp_path)
    write_scores(tmp_path, "nem", 0, 0.7)
    path = row_path(tmp_path, "nem", 0)
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match=r"nem_seed0\.json: not the scores of a row"):
        tables.write(tmp_path)


class FewImages:
    def load(self, stage: str) -> TensorImages:
        return few_shapes(8)


def test_scores_of_less_do_not_replace_scores_of_more(tmp_path):
    write_scores(tmp_path, "components", 0, 0.5, fingerprint="of another time")
    with pytest.raises(InputError, match=r"components_seed0\.json: is of 8 images, and is kept; this would be of 4"):
        Evaluator(FewImages(), tmp_path, 4, print).baseline(rows.ROWS["components"])
    assert json.loads(row_path(tmp_path, "components", 0).read_text())["fingerprint"] == "of another time"
    for count in (8, 4):  # the second finds more than it would score
        Evaluator(FewImages(), tmp_path, count, print).baseline(rows.ROWS["components"])
    found = json.loads(row_path(tmp_path, "components", 0).read_text())
    assert found["fingerprint"] == "components" and found["images"] == 8
    assert found["scores"]["test"]["all"]["reconstruction_error"] is None


def save(module, path: Path, **model) -> Path:
    torch.save({checkpoints.KEY: {"model": model}, "state_dict": module.state_dict()}, path)
    return path


def test_shipped_checkpoints_are_small_and_name_no_place(tmp_path):
    module = torch.nn.Module()
    module.em = torch.nn.Linear(700, 1000)
    target = tmp_path / "shipped.ckpt"
    assert shipping.compact(save(module, tmp_path / "a.ckpt", num_steps=2), target) == "float16"
    assert target.stat().st_size <= shipping.MOST_BYTES
    whole = target.read_bytes()
    assert str(tmp_path).encode() not in whole
    module.em = torch.nn.Linear(2000, 1000)
    with pytest.raises(InputError, match=r"4\.0 MB even in float16"):
        shipping.compact(save(module, tmp_path / "b.ckpt"), target)
    module.em = torch.nn.Linear(2, 1)
    with pytest.raises(InputError, match=r"model\.em\.0\.path=/home/me: names a place"):
        shipping.compact(save(module, tmp_path / "c.ckpt", em=[{"path": "/home/me"}]), target)
    assert target.read_bytes() == whole


@pytest.fixture
def reproduce(tmp_path, data_dir, monkeypatch, capfd):
    """``python -m reproduce`` with its folders in ``tmp_path``, in this process; gives what it printed."""
    monkeypatch.setenv("NEM_DATA_DIR", str(data_dir))
    monkeypatch.setenv("COLUMNS", "120")
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]

    def run(*arguments: str, status: int = 0) -> str:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["reproduce", *folders, *arguments])
        with pytest.raises(SystemExit) as stopped:
            __main__.main()
        assert stopped.value.code == status
        return capfd.readouterr().out

    return run


SMALL = ["model.num_steps=2", "trainer=cpu", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
SMALL += [
    "trainer.limit_train_batches=5",
    "data.batch_size=8",
    "trainer.max_epochs=40",
    "callbacks.early_stopping.patience=99",
]


def test_the_driver(reproduce, tmp_path, data_dir):
    """A run is stopped, goes on, is scored and tabulated, shipped, scored again, and tampered with."""
    train = ["--rows", "nem,components", "--seeds", "0", "--max-epochs", "25", "--images", "80", "--jobs", "2", *SMALL]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    command = [sys.executable, "-m", "reproduce", *folders, *train]
    environment = {**os.environ, "NEM_DATA_DIR": str(data_dir)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "nem" / "seed0_25epochs"
    deadline = time.time() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "nem_seed0: is asked to save and stop" in process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert not (run / "scores.json").exists() and not list((tmp_path / "results" / "rows").glob("nem*"))
    assert "nem_seed0: scoring" in reproduce(*train)
    assert "goes on from" in run.with_suffix(".log").read_text()
    path = row_path(tmp_path / "results", "nem", 0)
    scores = json.loads(path.read_text())
    assert scores["stop"] == "cut short" and (scores["epochs"], scores["planned_epochs"]) == (25, 40)
    assert scores["seconds"] > 0 and scores["weights"] == "float32" and scores["scores"]["test"]["all"]["images"] == 80
    assert scores["checkpoint"] == "nem/seed0_25epochs/checkpoints/best.ckpt"
    assert scores["by_step"][1] == scores["scores"]["test"]["all"] and len(scores["by_step"]) == 20
    results = tmp_path / "results"
    assert "cut short** after 25 of 40 epochs" in (results / "table.md").read_text()
    assert {"em_steps.png", "convergence.csv", "table.csv", "pictures"} <= {path.name for path in results.iterdir()}

    before = path.stat().st_mtime_ns
    assert "scoring" not in reproduce(*train)  # all is done
    assert path.stat().st_mtime_ns == before
    assert "nem_seed0.ckpt" in reproduce("--ship", "--rows", "nem", "--seeds", "0")
    shipped = results / "checkpoints" / "nem_seed0.ckpt"
    assert "nem_seed0.ckpt" in reproduce("--evaluate")
    assert checkpoints.load(shipped).num_steps == 2
    tampered = torch.load(shipped, weights_only=True)
    tampered["state_dict"]["em.m_step.weight"] *= -3
    torch.save(tampered, shipped)
    assert "reconstruction_error differ from the table's by more than 0.001" in reproduce("--evaluate", status=1)


def test_a_run_takes_no_time_once_it_has_ended(tmp_path, monkeypatch):
    """However long its scores wait for those of others."""
    monkeypatch.setattr(training, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text("print('done')")
    started = training._Started(training.Run(rows.ROWS["nem"], 0, tmp_path), 1)
    started.process.wait()
    seconds = started.seconds
    time.sleep(0.3)
    assert started.seconds == seconds < 60


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was stopped by SIGKILL; the same command goes on with it"),
        ("sys.exit(128 + signal.SIGTERM)", "was stopped by SIGTERM; the same command goes on with it"),
        ("sys.exit('data: there is none')", "failed: data: there is none"),
    ],
)
def test_it_says_why_a_run_has_ended(tmp_path, monkeypatch, end, said):
    monkeypatch.setattr(training, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(f"import os, signal, sys\nprint('Epoch 1', flush=True)\n{end}")
    run = training.Run(rows.ROWS["nem"], 0, tmp_path)
    assert list(training.train([run], 1, print)) == [(run, f"{said}; its output: {run.folder.with_suffix('.log')}")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "nem,x"], "--rows=nem,x: there is no row 'x'"),
        (["--seeds", "x"], "--seeds=x: must be integers"),
        (["--jobs", "0"], "--jobs=0: must be an integer of at least 1"),
        (["--ship", "--rows", "nem"], "nem_seed0.json: no such file"),
        (["--ship", "--rows", "kmeans"], "names no row that is trained"),
    ],
)
def test_bad_input_is_said_in_one_line(monkeypatch, tmp_path, arguments, said):
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert said in str(stopped.value) and "\n" not in str(stopped.value)
