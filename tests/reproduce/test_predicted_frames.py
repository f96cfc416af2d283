"""The command that measures predictions of unseen frames."""

import csv

import pytest
import torch

from nem_lightning.training import checkpoints
from reproduce import roll_out

M_STEP = {"_target_": "nem_lightning.models.m_steps.RecurrentMStep", "image_shape": [1, 28, 28], "hidden_size": 4}
MODEL = {
    "_target_": "nem_lightning.models.em.NeuralEM",
    "likelihood": {"_target_": "nem_lightning.models.likelihoods.Bernoulli"},
    "m_step": M_STEP,
}
MODULE = {"_target_": "nem_lightning.training.module.GroupingModule"}


@pytest.fixture
def saved(tmp_path):
    """Give a function that saves a model of T steps, trained on three flying shapes or as a shipped one."""
    data = {"_target_": "nem_lightning.datamodules.FlyingShapesDataModule", "data_dir": str(tmp_path)}

    def save(num_steps: int, says_data: bool = True) -> str:
        parts = {"model": {**MODEL, "num_steps": num_steps}, "module": MODULE}
        path = tmp_path / f"{num_steps}_{says_data}.ckpt"
        config = {**parts, "data": data} if says_data else parts
        weights = checkpoints.build(**parts).state_dict()
        torch.save({checkpoints.KEY: config, "state_dict": weights, "epoch": 0, "global_step": 1}, path)
        return str(path)

    return save


def command(monkeypatch, out, *arguments) -> None:
    monkeypatch.setattr("sys.argv", ["roll_out", "--data-dir", str(out), "--out", str(out / "table.csv"), *arguments])
    roll_out.main()


def test_models_are_compared_on_the_same_frames(saved, tmp_path, monkeypatch):
    paths = ("--checkpoint", saved(3), "--checkpoint", saved(3))
    command(monkeypatch, tmp_path, "--horizon", "2", "--sequences", "4", *paths)
    with open(tmp_path / "table.csv", newline="") as file:
        names, *lines = csv.reader(file)
    assert names[:2] == ["frames ahead", "the last frame stays"] and [line[0] for line in lines] == ["1", "2"]
    assert 0 < float(lines[0][1]) < float(lines[1][1])


def test_bad_input_gets_one_line(saved, tmp_path, monkeypatch):
    for arguments, message in (
        (("--checkpoint", saved(3), "--checkpoint", saved(4)), "num_steps is 4, the first one's 3; must be equal"),
        (("--checkpoint", saved(3), "--horizon", "0"), "--horizon=0: must be an integer of at least 1"),
        (("--checkpoint", saved(3), "--sequences", "0"), "--sequences=0: must be an integer of at least 1"),
        (("--checkpoint", saved(3), "--sequences", "20000"), "--sequences=20000: must be at most 10000"),
        (("--checkpoint", saved(3, says_data=False)), "does not say what it was trained on"),
    ):
        with pytest.raises(SystemExit, match=message) as error:
            command(monkeypatch, tmp_path, *arguments)
        assert "\n" not in str(error.value)
