"""The rows of growth: trained, kept with their cost, tabulated and drawn."""

import json

import pytest
import python_server
from test_sequence_rows import SMALL

from nem_lightning.errors import InputError
from reproduce import __main__, growth, rows
from reproduce.evaluation import Run


def test_one_thing_grows_in_each_row():
    by_name = {row.name: rows.settings(row) for row in rows.GROUPS["growth"]}
    best = by_name["growth_units_250"]
    assert best["model"]["m_step"]["hidden_size"] == 250 and best["data"]["size"] == 28
    assert (
        by_name["growth_objects_12"]["model"]["num_components"] == by_name["growth_objects_12"]["data"]["num_objects"]
    )
    whole = [json.dumps({part: config[part] for part in ("model", "data", "trainer")}) for config in by_name.values()]
    assert len(set(whole)) == len(whole)  # nothing is trained twice
    for images in (1_000, 2_500, 10_000, 100_000):
        row = by_name[f"growth_images_{images}"]
        assert row["data"]["train_images"] * row["trainer"]["max_epochs"] == 50_000 * best["trainer"]["max_epochs"]


def test_a_row_is_trained_kept_tabulated_and_drawn(data_dir, tmp_path, monkeypatch):
    python_server.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    row, extra = rows.ROWS["growth_units_50"], (*SMALL, f"paths.data_dir={data_dir}")
    assert __main__.train(row, [0], tmp_path / "runs", 1, extra, __main__.Console())
    growth.score(Run(row, 0, tmp_path / "runs", extra), tmp_path / "results")
    kept = json.loads((tmp_path / "results" / "growth" / "growth_units_50_seed0.json").read_text())
    assert kept["images"] == 64 and kept["milliseconds"] > 0 and -1 < kept["ami_max"] < 1
    places = growth.write(tmp_path / "results")
    numbers = f"{kept['ami_max']:.3f} | {kept['ari']:.3f} | {kept['milliseconds']:.0f}"
    line = f"| hidden units | 50 | 1 | {numbers} | `python train.py"
    assert line in places["growth"].read_text() and places["growth.png"].stat().st_size > 10_000
    with pytest.raises(InputError, match="was trained with other settings"):
        growth.score(Run(row, 0, tmp_path / "runs"), tmp_path / "results")


def test_a_row_may_be_a_point_of_several_lines():
    numbers = {
        "title": "t",
        "images": 64,
        "ami_max": 0.5,
        "ari": 0.6,
        "command": "c",
        "epochs": 2,
        "stop": "end of the schedule",
    }
    numbers["machine"] = {"device": "d", "threads": 1, "cores": 2, "torch": "2"}

    def runs(name: str, *times: float) -> list[dict]:
        return [{"row": name, "seed": seed, "milliseconds": time, **numbers} for seed, time in enumerate(times)]

    by_row = {"growth_units_250": runs("growth_units_250", 1.0, 3.0), "growth_units_10": runs("growth_units_10", 5.0)}
    by_row["growth_size_40"] = runs("growth_size_40", 4.0)
    found = [
        (line["factor"], line["value"], line["seeds"], line["milliseconds_mean"]) for line in growth.lines_of(by_row)
    ]
    expected = [("units", 10, 1, 5.0), ("units", 250, 2, 2.0), ("images", 50_000, 2, 2.0), ("size", 28, 2, 2.0)]
    expected += [("size", 40, 1, 4.0), ("objects", 3, 1, 4.0)]
    assert found == expected


def test_without_scores_there_is_no_table(tmp_path):
    assert growth.write(tmp_path) == {}
