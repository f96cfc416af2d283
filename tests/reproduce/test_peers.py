"""The rows of other models: trained, scored by ``evaluate.py``, and tabulated."""

import json

import numpy as np
import pytest
import python_server
import torch

from nem_lightning.errors import InputError
from nem_lightning.mosaics import GAP, TEXT
from reproduce import __main__, peers, rows
from reproduce.evaluation import Run

SMALL = ("data.train_on=single", "model.hidden_size=8", "trainer.max_epochs=1", "trainer.limit_train_batches=2")


def test_tests_have_larger_k_and_other_starts():
    names = ("bars_rnn_em", "shapes20_tagger", "shapes_kmeans")
    tested = {name: [each[-1] for each in peers.tests(rows.ROWS[name])] for name in names}
    all_images = f"trainer.limit_test_batches={peers.BATCHES}"
    assert tested["bars_rnn_em"] == [all_images, "num_components=13", "num_components=14", "num_starts=1"]
    assert tested["shapes20_tagger"][1:] == ["num_components=5", "num_components=6", "num_starts=16"]
    assert tested["shapes_kmeans"] == [all_images]
    assert all("data=shapes data.size=20" in " ".join(each) for each in peers.tests(rows.ROWS["shapes20_tagger"]))
    assert set(peers.PUBLISHED) <= {row.name for row in rows.GROUPS["peers"]}


def test_rows_are_trained_scored_and_tabulated(tmp_path, monkeypatch):
    python_server.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peers, "BATCHES", 1)
    monkeypatch.setattr(peers, "STARTS", 2)
    row, untrained = rows.ROWS["bars_rc"], rows.ROWS["bars_kmeans"]
    runs = tmp_path / "of mine, K=12 [a]"
    assert __main__.train(row, [0], runs, 1, SMALL, __main__.Console())
    run = Run(row, 0, runs, SMALL)
    said: list[str] = []
    for _ in range(2):  # the second time, tests are not run again
        peers.score(row, 0, run, run.folder, tmp_path / "results", said.append)
    next(run.folder.glob("tests/*/scores.json")).unlink()  # a test that was stopped
    peers.score(row, 0, run, run.folder, tmp_path / "results", said.append)
    peers.score(untrained, 0, None, tmp_path / "kmeans", tmp_path / "results", said.append)
    assert len(said) == 6 and said[-1].startswith("python evaluate.py model=position_kmeans model.num_components=12")
    found = json.loads((tmp_path / "results" / "peers" / "bars_rc_seed0.json").read_text())
    assert [test["num_components"] for test in found["tests"]] == [12, 13, 14, 12]
    assert [test["num_starts"] for test in found["tests"]] == [1, 1, 1, 2]
    assert found["parameters"] == 2 * 400 * 8 + 408 and found["training_images"] == 200
    path = peers.write(tmp_path / "results")
    assert path is not None
    ami, *larger = (f"{found['tests'][index]['ami_max']:.4f}" for index in (0, 1, 2))
    assert f"| bars | Reconstruction Clustering, hard | 1 | 12 | 10 | 1 | {ami} | " in path.read_text()
    assert f" | 0.852 | {' | '.join(larger)} | 2: " in path.read_text()
    assert "| bars | k-means on (x, y) | 1 | 12 | 1 | 10 | " in path.read_text()
    with pytest.raises(InputError, match="was trained with other settings"):
        peers.score(row, 0, Run(row, 0, runs), run.folder, tmp_path / "results", said.append)


def test_without_scores_there_is_no_table(tmp_path):
    assert peers.write(tmp_path) is None


def test_the_picture_shows_each_model_in_the_colours_of_the_true_groups():
    groups = torch.zeros(28, 28, dtype=torch.int)
    groups[3:9, 3:9], groups[12:20, 10:18] = 1, 2
    labels = torch.where(groups == 1, 2, torch.where(groups == 2, 0, 1))  # the same groups by other numbers
    assert torch.equal(peers._as_image(peers._as_text(labels)), labels)
    texts = {"image": (groups > 0).int(), "groups": groups, "labels": labels}
    pictures = {name: [peers._as_text(image)] for name, image in texts.items()}
    figure = peers._draw([{"title": "a model", "pictures": pictures}])
    drawn = figure.axes[0].images[0].get_array()
    assert drawn is not None
    height = (drawn.shape[0] - TEXT - GAP) // 3
    true, found = (drawn[TEXT + GAP + row * height :][: height - GAP] for row in (1, 2))
    assert np.array_equal(true, found) and len(np.unique(true.reshape(-1, 3), axis=0)) == 4  # black, two colours, white
