"""What a perfect tracker would score."""

import os
import sys

import numpy as np
import pytest
import torch

from nem_lightning.datamodules import FlyingShapesDataModule
from nem_lightning.datamodules.flying import Trajectories
from reproduce import perfect_tracker


def test_one_remembered_frame_leaves_a_pixel_on_each_side():
    found = perfect_tracker.next_position(18, [9])
    assert found.nonzero()[0].tolist() == [8, 9, 10] and found.sum() == pytest.approx(1)
    assert found == pytest.approx(found[::-1], rel=0.05) and found[9] > found[8]


def test_remembered_frames_tell_the_velocity():
    assert perfect_tracker.next_position(18, [5, 5, 5, 5, 5, 5, 5, 5])[5] > 0.8  # hardly moves
    assert perfect_tracker.next_position(18, [3, 4, 5, 6, 7, 8, 9, 10])[11] > 0.8  # a pixel a frame
    assert perfect_tracker.next_position(18, [3, 2, 1, 0])[1] > 0.5  # bounces off the wall


def test_motions_that_are_not_thought_possible_are_forgotten():
    expected = perfect_tracker.next_position(18, [9])
    assert np.array_equal(perfect_tracker.next_position(18, [2, 9]), expected)


def test_what_is_known_for_certain_is_drawn_like_the_data():
    module = FlyingShapesDataModule(data_dir=os.devnull, max_speed=0)
    data = module.load("test")
    assert isinstance(data, Trajectories)
    frame = data.__getitems__([3])["frames"][0, -1, 0]
    likely = perfect_tracker.expected(data, module.templates("test").extents, 3, 10)
    assert likely.shape == (3, 28, 28)
    assert torch.equal((likely > 0.5).any(0).float(), frame)


def test_command_line(monkeypatch, capsys):
    monkeypatch.setattr(perfect_tracker, "SEQUENCES", 16)
    monkeypatch.setattr(sys, "argv", ["perfect_tracker", "--objects", "2"])
    perfect_tracker.main()
    rows = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    scores = {int(frames): float(ami) for frames, ami in rows}
    assert list(scores) == [1, 2, 3, 5, 10]
    assert scores[1] < scores[3] < scores[10] and scores[10] > 0.97
    monkeypatch.setattr(sys, "argv", ["perfect_tracker", "--objects", "50"])
    with pytest.raises(SystemExit, match=r"^num_objects=50: must be at most 5"):
        perfect_tracker.main()
