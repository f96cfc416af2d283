"""What a perfect tracker would score."""

import os
import sys

import pytest
import torch

from nem_lightning.datamodules import FlyingShapesDataModule
from nem_lightning.datamodules.flying import Trajectories
from reproduce import perfect_tracker


def test_shapes_are_those_of_the_sequences():
    data = FlyingShapesDataModule(data_dir=os.devnull, num_frames=3).load("test")
    assert isinstance(data, Trajectories)
    alone = perfect_tracker.shapes(data, 5)
    batch = data.__getitems__(range(5))
    assert torch.equal(alone.amax(2), batch["frames"].squeeze(2))
    only = torch.where(alone.sum(2) == 1, alone.argmax(2) + 1, 0)
    assert torch.equal(only, batch["groups"])


def test_scores_fall_with_what_is_not_known():
    """A row of two touching squares: a pixel is lost on one side if they are known to be one pixel further."""
    known = torch.zeros(1, 2, 1, 12)
    known[0, 0, 0, 2:6], known[0, 1, 0, 6:10] = 1, 1
    groups = torch.tensor([[[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]])
    assert perfect_tracker.score(known, groups, spread=1) == pytest.approx(1)
    assert perfect_tracker.score(known, groups, spread=3) == pytest.approx(1)  # blurred alike on both sides
    assert perfect_tracker.score(known.roll(1, -1), groups, spread=1) < 0.8
    assert perfect_tracker.score(known.flip(1), groups, spread=1) == pytest.approx(1)


def test_command_line(monkeypatch, capsys):
    monkeypatch.setattr(perfect_tracker, "SEQUENCES", 16)
    monkeypatch.setattr(sys, "argv", ["perfect_tracker", "--objects", "2"])
    perfect_tracker.main()
    printed = capsys.readouterr().out
    assert "2 objects" in printed and "1.000" in printed
    monkeypatch.setattr(sys, "argv", ["perfect_tracker", "--objects", "50"])
    with pytest.raises(SystemExit, match=r"^num_objects=50: must be at most 5"):
        perfect_tracker.main()
