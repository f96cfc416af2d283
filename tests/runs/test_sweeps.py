"""Sweeps: names of runs, failing runs, runs added later, searches."""

import contextlib
import csv
import json
import sqlite3
from pathlib import Path

import pytest
import yaml
from commands import TINY, Command, runs_in
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from nem_lightning.runs.sweeps import name_of_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture
def sweep(folder, data_dir):
    """Run a sweep in ``folder``, and give its output. Its exit status must be ``status``."""

    def finish(*arguments: str, status: int = 0) -> str:
        own = {"NEM_DATA_DIR": str(data_dir)}
        printed = Command("train.py", "-m", *TINY, *arguments, folder=folder, environment=own).end(status)
        assert "Traceback" not in printed
        return printed

    return finish


@pytest.mark.parametrize(
    ("overrides", "not_swept", "name"),
    [
        (["model.num_steps=5", "seed=3"], [], "num_steps-5_seed-3"),
        (["seed=3", "model.num_steps=5"], ["seed"], "num_steps-5_seed-3"),  # in any order; seeds may be added later
        (["model=nem", "seed=3"], ["model"], "seed-3"),
        (["model.a.size=1", "data.size=2"], [], "data.size-2_model.a.size-1_seed-3"),
        (["+model.new=x"], [], "new-x_seed-3"),
        ([], [], "seed-3"),
    ],
)
def test_a_run_is_named_by_what_differs(overrides, not_swept, name):
    assert name_of_run(overrides, not_swept, seed=3) == name


settings = st.dictionaries(
    st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4}){0,2}", fullmatch=True).filter(lambda key: key != "seed"),
    st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=150)).map(str),
    max_size=5,
)


@given(settings, settings)
def test_names_are_short_folder_names_and_differ_where_settings_do(one, other):
    names = [name_of_run([f"{key}={value}" for key, value in each.items()], [], 0) for each in (one, other)]
    for name in names:
        assert 0 < len(name) <= 100 and not set(name) & set("/\\ =,'\"\n")
    assert (names[0] == names[1]) == (one == other)


def test_a_failing_run_ends_no_sweep_and_runs_are_added_later(sweep, folder):
    printed = sweep("hydra.sweep.dir=mine", "seed=0,1", "model.num_steps=0,2", status=1)
    runs = runs_in(folder / "mine")
    assert list(runs) == ["num_steps-0_seed-0", "num_steps-0_seed-1", "num_steps-2_seed-0", "num_steps-2_seed-1"]
    why = "model.num_steps=0: must be an integer of at least 1"
    for name, run in runs.items():
        assert ("num_steps-2" in name) == (run / "scores.json").exists() == (not (run / "error.txt").exists())
        if "num_steps-0" in name:
            assert (run / "error.txt").read_text().splitlines()[-1] == why
    said = printed[printed.index("Sweep mine") :]
    assert said.count(why) == 2 and "2 of 4 runs finished." in said
    assert "the same command and hydra.sweep.dir=mine" in said

    for run in runs.values():
        if not (run / "scores.json").exists():
            (run / "error.txt").unlink()
            (run / "train.log").unlink()
            run.rmdir()
    before = {
        path: path.read_bytes() for path in (folder / "mine").glob("*-2_*/**/*") if path.suffix in {".ckpt", ".json"}
    }
    printed = sweep("hydra.sweep.dir=mine", "model.num_steps=2,3", "seed=0,1,2")
    assert printed.count("Finished before.") == 2 and "6 of 6 runs finished." in printed
    assert before == {path: path.read_bytes() for path in before}

    Command("-m", "nem_lightning.report", "mine", folder=folder).end()
    with open(folder / "mine" / "report.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"finished"} and len(rows) == 6
    for row in rows:
        scores = json.loads((runs_in(folder / "mine")[Path(row["folder"]).name] / "scores.json").read_text())
        assert float(row["test/ami_max"]) == pytest.approx(scores["by_step"][-1]["ami_max"])
    assert (folder / "mine" / "report.html").stat().st_size > 100_000


def test_a_search_goes_on_where_it_was_and_leaves_out_trials_that_fail(sweep, folder):
    fixed = {"model.m_step.hidden_size": 10, "data.batch_size": 64, "model.corruption.prob": 0.1}
    fixed |= {"model.m_step.layer_norm": "true", "model.differentiate_responsibilities": "true"}
    search = ["hparams_search=recipe", "hydra.sweep.dir=search", "hydra.sweeper.n_trials=5"]
    search += ["optimizer.lr=choice(inf,1e-3)", *(f"{key}={value}" for key, value in fixed.items())]
    printed = sweep(*search, "hydra.sweeper.sampler.seed=0", status=1)
    assert (
        set(runs_in(folder / "search")) == {"lr-inf_seed-0", "lr-0.001_seed-0"} and "1 of 2 runs finished." in printed
    )
    found = yaml.safe_load((folder / "search" / "optimization_results.yaml").read_text())
    assert found["best_params"] == {"optimizer.lr": 1e-3}
    scores = json.loads((folder / "search" / "lr-0.001_seed-0" / "scores.json").read_text())
    assert found["best_value"] == scores["best_score"]

    sweep(*search, "hydra.sweeper.sampler.seed=1", status=1)
    with contextlib.closing(sqlite3.connect(folder / "search" / "optuna.db")) as study:
        states = [state for (state,) in study.execute("select state from trials")]
    assert len(states) == 10 and set(states) == {"COMPLETE", "FAIL"}


def test_the_search_in_wandb_sets_what_there_is_and_what_optuna_searches():
    sweep = yaml.safe_load((ROOT / "wandb_sweep.yaml").read_text())
    search = yaml.safe_load((ROOT / "conf" / "hparams_search" / "recipe.yaml").read_text())
    assert sweep["parameters"].keys() == search["hydra"]["sweeper"]["params"].keys()
    assert (ROOT / sweep["program"]).exists()
    chosen = [
        f"{name}={next(iter(of['values'])) if 'values' in of else of['min']}"
        for name, of in sweep["parameters"].items()
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=chosen)
    watched = config.logger.wandb.summary
    metric, best = sweep["metric"]["name"].split(".")
    assert watched[metric] == best == sweep["metric"]["goal"][:3]
