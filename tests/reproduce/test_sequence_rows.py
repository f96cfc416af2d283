"""The rows of sequences: trained, scored by ``evaluate.py`` with other numbers, and tabulated."""

import dataclasses
import json

import pytest
import python_server
import yaml

from nem_lightning.datamodules import flying
from nem_lightning.errors import InputError
from nem_lightning.training import checkpoints
from reproduce import __main__, rows, sequences
from reproduce.evaluation import Run

SMALL = ("model.m_step.hidden_size=8", "model.num_starts=1", "trainer.max_epochs=1")
SMALL += tuple(f"trainer.limit_{name}_batches={count}" for name, count in (("val", 1), ("test", 1), ("train", 2)))


def test_tests_have_other_k_other_counts_and_more_frames():
    by_row = {row.name: sequences.tests(row) for row in rows.GROUPS["sequences"]}
    three = [[each.partition("=")[2] for each in overrides[1:4]] for overrides in by_row["flying_shapes_3"]]
    assert three == [["3", "3", "20"], ["3", "3", "40"], ["3", "5", "20"], ["5", "5", "20"]]
    five = [[each.partition("=")[2] for each in overrides[1:4]] for overrides in by_row["flying_shapes_5_conv"]]
    assert five == [["5", "5", "20"], ["5", "5", "40"], ["5", "3", "20"], ["3", "3", "20"]]
    assert len(by_row["flying_shapes_3_K1"]) == 1
    digits = [[each.partition("=")[2] for each in overrides[1:5]] for overrides in by_row["flying_mnist_2_all"]]
    assert digits == [["2", "all", "2", "20"], ["2", "all", "2", "40"]]
    for row in rows.GROUPS["sequences"]:
        model = rows.settings(row)["model"]
        assert model["num_steps"] * model["iterations_per_step"] == (40 if row.name.endswith("longer") else 20)


def test_a_stage_begins_with_the_weights_of_the_stage_before():
    stages = [rows.settings(rows.ROWS[f"flying_mnist_2_{name}"]) for name in ("20", "500", "all", "longer")]
    assert stages[0]["weights_from"] is None
    before = [f"run/../../flying_mnist_2_{name}/seed-0/checkpoints/best.ckpt" for name in ("20", "500", "all")]
    assert [stage["weights_from"] for stage in stages[1:]] == before


def test_a_stage_of_another_seed_is_known_by_its_settings(tmp_path, monkeypatch):
    row = rows.ROWS["flying_mnist_2_500"]
    run = Run(row, 1, tmp_path, ())
    run.best_checkpoint.parent.mkdir(parents=True)
    run.best_checkpoint.touch()
    (run.folder / "config.yaml").write_text(yaml.safe_dump(rows.settings(row, ("seed=1",))))
    (run.folder / "scores.json").write_text('{"by_step": [], "headings": {}, "epochs": 2, "seconds": 1}')
    monkeypatch.setattr(checkpoints, "read", lambda path: {"epoch": 1})
    assert run.facts()["epochs"] == 2


def test_a_row_is_trained_scored_and_tabulated(tmp_path, monkeypatch, capfd):
    python_server.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    row = rows.ROWS["flying_shapes_3_K1"]
    row = dataclasses.replace(row, overrides=(*row.overrides, "trainer.limit_test_batches=1"))
    assert __main__.train(row, [0], tmp_path / "runs", 1, SMALL, __main__.Console())
    run = Run(row, 0, tmp_path / "runs", SMALL)
    said: list[str] = []
    for _ in range(2):  # the second time, tests are not run again
        sequences.score(run, tmp_path / "results", said.append)
    assert len(said) == 1 and "data=flying_shapes data.num_objects=3 num_components=1 num_steps=20" in said[0]
    (test,) = json.loads((tmp_path / "results" / "sequences" / "flying_shapes_3_K1_seed0.json").read_text())["tests"]
    assert test["num_images"] == 64 and test["ami_max"] == pytest.approx(0, abs=0.02) and test["loss"] > 0
    path = sequences.write(tmp_path / "results")
    assert path is not None
    numbers = " | ".join(f"{test[name]:.3f}" for name in ("ami_max", "ami_max_mean", "ari"))
    line = f"| flying_shapes (3, 1) | dense network | 0 | (3, 1, 20) | {numbers} | {test['loss']:.1f} | "
    assert line in path.read_text() and "trainer.limit_train_batches=2` | 1 | cut short |" in path.read_text()
    with pytest.raises(InputError, match="was trained with other settings"):
        sequences.score(Run(row, 0, tmp_path / "runs"), tmp_path / "results", said.append)


def test_the_tests_have_so_many_sequences_as_is_said_and_without_scores_there_is_no_table(tmp_path):
    assert sequences.write(tmp_path) is None
    for row in rows.GROUPS["sequences"]:
        config = rows.settings(row)
        batches = 4 if row.name.endswith("conv") else 16
        assert config["trainer"]["limit_test_batches"] == batches
        assert f"trainer.limit_test_batches={batches}" in sequences.tests(row)[0]
        assert ("trainer.precision=bf16-mixed" in sequences.tests(row)[0]) == row.name.endswith("conv")
        assert batches * config["data"]["batch_size"] <= flying.SPLITS["test"][1]
