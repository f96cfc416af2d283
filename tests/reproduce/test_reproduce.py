"""The results table: its rows, tables from scores, and the whole driver as a user starts it."""

import csv
import json
import sys
from pathlib import Path

import pytest
import python_server
import torch
from conftest import ROOT
from hydra.utils import instantiate

from nem_lightning.datamodules.base import TensorFrames
from nem_lightning.datamodules.shapes import ShapesDataModule
from nem_lightning.errors import InputError
from nem_lightning.runs.settings import comparable, differences
from nem_lightning.training import checkpoints
from reproduce import __main__, rows, shipped, tables
from reproduce.evaluation import Evaluator

HEADINGS = {"ami_max": ["AMI (max)", ".4f"], "reconstruction_error": ["reconstr. error", ".4f"]}


@pytest.mark.parametrize("text", ["x", "", "0,,1", "-1", "1.5"])
def test_seeds_that_are_none(text):
    with pytest.raises(InputError, match=f"--seeds={text}: must be integers"):
        rows.parse_seeds(text)


def test_rows_by_name():
    chosen = rows.select("nem_published,baselines")
    assert [row.name for row in chosen] == ["nem_published", "kmeans", "gmm", "components", "chance"]
    assert len(rows.select("all")) == len(rows.ROWS)
    with pytest.raises(InputError, match="there is no row 'recipe'; rows are all, baselines"):
        rows.select("nem,recipe")


def test_rows_compose_and_an_ablation_changes_one_setting():
    best = rows.settings(rows.ROWS["rnn_em"])
    kinds = {"nem": "GradientMStep", "nem_published": "GradientMStep", "rnn_em_sprites": "GatedMStep"}
    for row in rows.GROUPS["trained"]:
        model = rows.settings(row)["model"]
        assert model["m_step"]["_target_"].endswith(kinds.get(row.name, "RecurrentMStep"))
        assert (model["init"] == "noise") == (row.name.endswith("published") or row.name == "rnn_em_sprites")
    for row in rows.GROUPS["steps"]:
        assert row.name == f"steps_T{rows.settings(row)['model']['num_steps']}" != "steps_T10"
    assert best["model"]["num_steps"] == 10
    for row in rows.GROUPS["ablations"]:
        assert len(differences(best, rows.settings(row))) == 1, row.name
    published = rows.settings(rows.ROWS["rnn_em_published"])
    of_published = [row for row in rows.GROUPS["published"] if row.name != "from_noise"]
    for row in (*of_published, *rows.GROUPS["published_steps"]):
        named = {override.partition("=")[0] for override in row.overrides} - {"experiment"}
        changed = {each.name for each in differences(published, rows.settings(row))}
        assert changed == named - ({"model.num_steps"} if row.name == "published_T10" else set()), row.name
    with pytest.raises(InputError, match=r"nem: .*nonsense"):
        rows.settings(rows.ROWS["nem"], ("nonsense=1",))


def write_scores(results: Path, row: str, seed: int, ami: float, **more) -> Path:
    """Make up scores of a row."""
    of_subset = {"images": 8, "scored": 8, "ami_max": ami}
    of_subset["reconstruction_error"] = 0.01 * ami if "epochs" in more else None
    of_stage = dict.fromkeys(("all", "overlap", "no_overlap"), of_subset)
    scores = {
        "row": row,
        "title": row.upper(),
        "seed": seed,
        "images": 8,
        "headings": HEADINGS,
        "fingerprint": "made up",
    }
    scores |= {"machine": {"device": "A", "threads": 1, "cores": 2, "torch": "2"}, "scores": {"val": of_stage}}
    scores["scores"]["test"], scores["fingerprint"] = of_stage, "made up"
    if "epochs" in more:
        scores |= {"command": f"python train.py seed={seed}", "seconds": 1800, "weights": "float32"}
    path = rows.row_path(results, row, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**scores, **more}))
    return path


EARLY = {"epochs": 12, "planned_epochs": 500, "stop": "early stopping", "num_steps": 2}
CUT = {"epochs": 3, "planned_epochs": 500, "stop": "cut short", "num_steps": 2}


def test_tables_from_scores(tmp_path):
    write_scores(tmp_path, "kmeans", 0, 0.8)
    for seed, ami in enumerate((0.70, 0.72, 0.77)):
        write_scores(tmp_path, "nem", seed, ami, **(CUT if seed == 2 else EARLY))
        steps = [{"steps": T, "images": 8, "ami_max": T / 2 * ami, "reconstruction_error": 0} for T in (1, 2)]
        write_scores(tmp_path, "rnn_em", seed, ami + 0.1, **EARLY, by_step=steps)
        write_scores(tmp_path, "steps_T7", seed, ami, **{**EARLY, "num_steps": 7})
        write_scores(tmp_path, "ablation_one_start", seed, ami - 0.2, **EARLY)
    places = tables.write(tmp_path)
    assert all(path.stat().st_size > 100 for path in places.values())
    assert "em_steps.png" in places and not {"other_k.csv", "training.csv"} & set(places)
    text = places["table"].read_text()
    assert "| KMEANS | 1 | 8 | 0.8000 | - |" in text
    assert "| NEM | 3 | 8 | 0.7300 ± 0.0361 |" in text  # sample deviation of 0.70, 0.72, 0.77
    assert "| RNN_EM | 3 | 0.8300 ± 0.0361 | 0.8300 ± 0.0361 | 8 | 0.0083 ± 0.0004 |" in text
    assert "| ABLATION_ONE_START | 3 | 0.5300 ± 0.0361 | 0.5300 ± 0.0361 | 8 |" in text
    assert "9.0 ± 5.2 | 2 early stopping, 1 **cut short** after 3 of 500 epochs |" in text
    assert "| `python train.py seed=<seed>` | 0.50 ± 0.00 | A, 1 of 2 cores, torch 2 | float32 |" in text
    with open(tmp_path / "table.csv") as file:
        found = {(line["row"], line["split"], line["subset"]): line for line in csv.DictReader(file)}
    line = found["nem", "validation", "overlap"]
    assert float(line["ami_max_mean"]) == pytest.approx(0.73) and float(line["ami_max_std"]) == pytest.approx(0.0360555)
    assert found["kmeans", "test", "all"]["ami_max_std"] == ""
    with open(tmp_path / "em_steps.csv") as file:
        lines = [(line["row"], int(line["steps"]), float(line["ami_max_mean"])) for line in csv.DictReader(file)]
    assert [line[:2] for line in lines] == [("rnn_em", 1), ("rnn_em", 2), ("steps_T", 2), ("steps_T", 7)]
    assert [line[2] for line in lines] == pytest.approx([0.415 - 0.05, 0.73, 0.83, 0.73])


def test_long_trainings_have_curves(tmp_path):
    for row, epochs in {"rnn_em": 2, "steps_T7": 21, "nem_published": 21}.items():
        for seed, ami in enumerate((0.2, 0.4)):
            by_epoch = [{"epoch": e, "ami_max": e * ami, "reconstruction_error": 1 / e} for e in range(1, epochs + 1)]
            write_scores(tmp_path, row, seed, ami, **EARLY | {"epochs": epochs}, by_epoch=by_epoch[: epochs - seed])
    write_scores(tmp_path, "rnn_em_published", 0, 0.3, **EARLY | {"epochs": 30})  # scored before there were curves
    tables.write(tmp_path)
    with open(tmp_path / "training.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["epoch"]) for line in lines] == [("nem_published", str(e)) for e in range(1, 22)]
    assert float(lines[1]["ami_max_mean"]) == pytest.approx(0.6) and lines[1]["seeds"] == "2"
    assert float(lines[-1]["ami_max_mean"]) == pytest.approx(4.2) and lines[-1]["seeds"] == "1"


def test_seeds_of_different_settings_make_no_row(tmp_path):
    write_scores(tmp_path, "nem", 0, 0.7, **EARLY, settings={"model.num_steps": 5})
    write_scores(tmp_path, "nem", 1, 0.7, **EARLY, settings={"model.num_steps": 6})
    with pytest.raises(InputError, match=r"nem: seeds 0 and 1 .* different settings \(model.num_steps\)"):
        tables.write(tmp_path)


def test_scores_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no scores in it"):
        tables.write(tmp_path)
    path = write_scores(tmp_path, "nem", 0, 0.7)
    for damaged in (path.read_text()[:50], "[]", "{}"):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"nem_seed0\.json: not the scores of a row") as error:
            tables.write(tmp_path)
        assert "\n" not in str(error.value)


def test_the_shipped_results_can_be_read():
    """Each shipped row has the title and the settings of a row in ``ROWS``; each checkpoint loads."""
    found = tables.read_rows(ROOT / "results")
    for name, of_seeds in found.items():
        assert {one["title"] for one in of_seeds} == {rows.ROWS[name].title}
        if rows.ROWS[name].trained:
            wanted = comparable(rows.settings(rows.ROWS[name]))
            said = {name: value for name, value in of_seeds[0]["settings"].items() if not name.startswith("trainer.")}
            assert not differences(said, {name: wanted.get(name) for name in comparable(said)})
    for path in (ROOT / "results" / "checkpoints").iterdir():
        row, _, seed = path.stem.rpartition("_seed")
        assert shipped.fingerprint(path) == rows.read(rows.row_path(ROOT / "results", row, int(seed)))["fingerprint"]
        model = checkpoints.load_module(path, seed=0).model
        assert type(model) is type(instantiate(rows.settings(rows.ROWS[row])["model"]))


class FewImages(ShapesDataModule):
    def load(self, stage: str) -> TensorFrames:
        from test_scores_of_rows import few_shapes

        return few_shapes(8)


def test_scores_of_less_do_not_replace_scores_of_more(tmp_path):
    path, row = write_scores(tmp_path, "components", 0, 0.5), rows.ROWS["components"]
    with pytest.raises(InputError, match=r"components_seed0\.json: is of 8 images, and is kept; this would be of 4"):
        Evaluator(FewImages("nowhere"), tmp_path, 4, print).baseline(row)
    assert json.loads(path.read_text())["fingerprint"] == "made up"
    for count in (8, 4):  # the second time, there are scores of more images
        Evaluator(FewImages("nowhere"), tmp_path, count, print).baseline(row)
    found = rows.read(path)
    assert found["fingerprint"] == "model=connected_components" and found["images"] == 8
    assert found["scores"]["test"]["all"]["reconstruction_error"] is None


def save(module: torch.nn.Module, path: Path, **model) -> Path:
    torch.save({checkpoints.KEY: {"model": model, "module": {}}, "state_dict": module.state_dict()}, path)
    return path


def test_shipped_checkpoints_are_small_and_name_no_place(tmp_path):
    target = tmp_path / "shipped.ckpt"
    assert shipped.compact(save(torch.nn.Linear(700, 1000), tmp_path / "a.ckpt", num_steps=2), target) == "float16"
    whole = target.read_bytes()
    assert len(whole) <= shipped.MOST_BYTES and str(tmp_path).encode() not in whole
    with pytest.raises(InputError, match=r"4\.0 MB even in float16"):
        shipped.compact(save(torch.nn.Linear(2000, 1000), tmp_path / "b.ckpt"), target)
    with pytest.raises(InputError, match=r"model\.encoder\.path=/home/me: names a place"):
        shipped.compact(save(torch.nn.Linear(2, 1), tmp_path / "c.ckpt", encoder={"path": "/home/me"}), target)
    assert target.read_bytes() == whole


@pytest.fixture
def reproduce(tmp_path, monkeypatch, capfd):
    """Run ``python -m reproduce`` in this process, with its folders in ``tmp_path``, and give its output."""
    monkeypatch.setenv("COLUMNS", "120")
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]

    def run(*arguments: str, status: int = 0) -> str:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["reproduce", *arguments, *folders])
        with pytest.raises(SystemExit) as stopped:
            __main__.main()
        assert stopped.value.code == status
        return capfd.readouterr().out

    return run


SMALL = ["model.num_steps=2", "trainer=cpu", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
SMALL += ["trainer.limit_train_batches=5", "data.batch_size=8", "trainer.max_epochs=2"]


def test_the_driver(reproduce, tmp_path, data_dir, monkeypatch):
    """A row is trained, scored, tabulated, shipped, and scored again, at last with changed weights."""
    python_server.use(monkeypatch)
    monkeypatch.setenv("NEM_DATA_DIR", str(data_dir))
    chosen = ["--rows", "nem_published,components", "--seeds", "0"]
    printed = reproduce("all", *chosen, "--images", "40", *SMALL)
    assert "python train.py -m experiment=nem_shapes seed=0 model.num_steps=2" in printed
    assert "1 of 1 runs finished" in printed and "nem_published_seed0: scoring" in printed
    results = tmp_path / "results"
    path = rows.row_path(results, "nem_published", 0)
    scores = rows.read(path)
    assert scores["stop"] == "cut short" and (scores["epochs"], scores["planned_epochs"]) == (2, 500)
    assert scores["command"] == f"python train.py experiment=nem_shapes seed=0 {' '.join(SMALL)}"
    assert [sorted(line) for line in scores["by_epoch"]] == [["ami_max", "epoch", "loss", "reconstruction_error"]] * 2
    assert scores["seconds"] > 0 and scores["weights"] == "float32" and scores["scores"]["test"]["all"]["images"] == 40
    assert [entry["steps"] for entry in scores["by_step"]] == list(rows.STEPS)
    assert {"steps": 2, **scores["scores"]["test"]["all"]} == scores["by_step"][1]
    assert "cut short** after 2 of 500 epochs" in (results / "table.md").read_text()
    assert {"em_steps.png", "other_k.png", "convergence.csv", "table.csv"} <= {path.name for path in results.iterdir()}
    assert (results / "pictures" / "nem_published_gallery.png").is_file()

    before = path.stat().st_mtime_ns
    assert "scoring" not in reproduce("score", *chosen, "--images", "40", *SMALL)  # everything is scored already
    assert path.stat().st_mtime_ns == before
    refused = reproduce("score", *chosen, "--images", "40", *SMALL[1:], status=1)
    assert "was trained with other settings (model.num_steps: 2 there, 10 here)" in refused
    assert "nem_published_seed0.ckpt" in reproduce("ship", *chosen)
    assert "nem_published_seed0.ckpt" in reproduce("evaluate")
    ckpt = results / "checkpoints" / "nem_published_seed0.ckpt"
    tampered = torch.load(ckpt, weights_only=True)
    tampered["state_dict"]["model.m_step.weight"] *= -3
    torch.save(tampered, ckpt)
    assert "reconstruction_error differ from the table's by more than 0.001" in reproduce("evaluate", status=1)


@pytest.mark.parametrize(("end", "status"), [("sys.exit('failed')", 1), ("os.kill(os.getpid(), 15)", 130)])
def test_a_failed_run_is_no_stop_but_a_signal_is(reproduce, tmp_path, monkeypatch, end, status):
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(f"import os, sys\nprint(sys.argv[1:], flush=True)\n{end}")
    printed = reproduce("train", "--rows", "nem,rnn_em", "--jobs", "2", status=status)
    assert printed.count("'hydra/launcher=submitit_local', 'hydra.sweeper.max_batch_size=2'") == (
        2 if status == 1 else 1
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--rows", "nem,x"], "--rows=nem,x: there is no row 'x'"),
        (["train", "--seeds", "x"], "--seeds=x: must be integers"),
        (["train", "--jobs", "0"], "--jobs=0: must be an integer of at least 1"),
        (["train", "--rows", "nem", "nonsense=1"], "nem: model=nem nonsense=1: "),
        (["ship", "--rows", "nem"], "nem_seed0.json: no such file"),
        (["ship", "--rows", "kmeans"], "names no row that is trained"),
    ],
)
def test_bad_input_is_said_in_one_line(monkeypatch, tmp_path, arguments, said):
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert said in str(stopped.value) and "\n" not in str(stopped.value)
