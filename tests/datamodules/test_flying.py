"""Sequences of flying objects: the motion, the drawing, and published files."""

import gzip
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from digits import make_digits

from nem_lightning.datamodules import FlyingMNISTDataModule, FlyingShapesDataModule, mnist, published
from nem_lightning.datamodules.flying import UNIT, FlyingDataModule, Trajectories, fly
from nem_lightning.errors import InputError

FIRST_POSITIONS = [[[20, 15], [14, 15], [18, 0]], [[20, 15], [14, 16], [18, 0]], [[20, 16], [13, 15], [17, 1]]]
"""Rows and columns of three objects in three frames, in the first of 60 sequences with seed 0."""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    splits = {"train": ("training", 60), "val": ("validation", 30), "test": ("test", 30)}
    monkeypatch.setattr("nem_lightning.datamodules.flying.SPLITS", splits)


@pytest.fixture
def digits(tmp_path, monkeypatch) -> Path:
    """A folder with small files in MNIST's format; their hashes are the expected ones."""
    monkeypatch.setattr(mnist, "IMAGES", make_digits(tmp_path / "mnist"))
    return tmp_path / "mnist"


def drawn(data: FlyingDataModule, stage: str = "train") -> Trajectories:
    found = data.stages[stage]
    assert isinstance(found, Trajectories)
    return found


def test_objects_move_straight_on_and_bounce_off_the_walls():
    start, velocity, room = (np.array([each]) * UNIT for each in (3, 2, 5))
    assert fly(start, velocity, room, 9)[:, 0].tolist() == [3, 5, 3, 1, 1, 3, 5, 3, 1]
    assert fly(start, -velocity, room, 4)[:, 0].tolist() == [3, 1, 1, 3]
    assert not fly(start * 0, velocity, room * 0, 4).any()  # no room to move
    assert fly(100 * start, velocity, 100 * room, 3)[:, 0].tolist() == [300, 302, 304]  # large images
    half = np.array([UNIT // 2])
    assert fly(half * 0, half, room, 5)[:, 0].tolist() == [0, 1, 1, 2, 2]  # to the nearest pixel


def test_each_frame_is_the_union_of_the_templates():
    """The test draws the expected frames pixel by pixel."""
    data = FlyingShapesDataModule("nowhere", num_objects=4, num_frames=5)
    data.setup("fit")
    train = drawn(data)
    templates, positions = data.templates("train").pixels.numpy(), train.positions.numpy()
    for index in (0, 7):
        one = train[index]
        assert one["frames"].shape == (5, 1, 28, 28) and one["groups"].dtype == torch.int64
        for frame in range(5):
            covers, groups = np.zeros((28, 28), int), np.zeros((28, 28), int)
            for k, kind in enumerate(train.kinds[index]):
                for row, column in np.argwhere(templates[kind]) + positions[index, frame, k]:
                    covers[row, column] += 1
                    groups[row, column] = k + 1
            assert (one["frames"][frame, 0].numpy() == (covers > 0)).all()
            assert (one["groups"][frame].numpy() == np.where(covers == 1, groups, 0)).all()


def test_the_same_seed_gives_the_same_set_and_each_stage_its_own():
    def positions(stage: str, **settings) -> torch.Tensor:
        data = FlyingShapesDataModule("nowhere", **settings)
        data.setup()
        return drawn(data, stage).positions

    first = positions("train")
    assert first[0, :3].tolist() == FIRST_POSITIONS  # on every machine
    assert torch.equal(first, positions("train", seed=5)) and torch.equal(
        first[:, :11], positions("train", num_frames=11)
    )
    assert not torch.equal(first, positions("train", generation_seed=1))
    assert not torch.equal(first[:30], positions("val"))
    steps = (first[:, 1:].int() - first[:, :-1].int()).abs()
    assert steps.max() == 1  # pixels a frame
    assert (positions("train", max_speed=0) == positions("train", max_speed=0)[:, :1]).all()


def test_sequences_that_are_drawn_on_a_gpu_are_not_pinned(monkeypatch):
    """PyTorch raises an error if a tensor that is to be pinned is not in the memory of the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    data = FlyingShapesDataModule("nowhere", num_frames=2)
    data.setup("test")
    assert data.test_dataloader().pin_memory
    data.stages["test"].device = torch.device("cuda")
    assert not data.test_dataloader().pin_memory


def test_flying_digits(digits):
    data = FlyingMNISTDataModule("nowhere", str(digits), num_objects=2, num_digits_used=20, num_frames=3)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["frames"].shape == (60, 3, 1, 24, 24) and batch["frames"].min() >= 0 and batch["frames"].max() <= 1
    train = drawn(data)
    assert train.kinds.max() < 20
    images = mnist.read_images(digits / "train-images-idx3-ubyte.gz")
    expected = images[3].reshape(14, 2, 14, 2).mean((1, 3))
    assert np.abs(data.templates("test").pixels[3].numpy() - expected).max() <= 0.5  # 20 digits: the same in all stages
    batch = train.__getitems__([0])
    one, other = (templates_at(data, train, k) for k in (0, 1))
    assert torch.equal(batch["frames"][0, 0, 0] * 255, torch.maximum(one, other))  # the brighter digit is visible
    alone = (one >= 127.5) ^ (other >= 127.5)  # a digit covers its bright pixels
    assert ((one > 0) & (one < 127.5)).any()
    assert torch.equal(batch["groups"][0, 0] > 0, alone)

    whole = FlyingMNISTDataModule("nowhere", str(digits), num_digits_used="all")
    assert torch.equal(whole.templates("train").pixels[:20], data.templates("train").pixels)
    assert len(whole.templates("test").pixels) == 50


def templates_at(data: FlyingMNISTDataModule, train, k: int) -> torch.Tensor:
    row, column = train.positions[0, 0, k].tolist()
    canvas = torch.zeros(24, 24)
    canvas[row : row + 14, column : column + 14] = data.templates("train").pixels[train.kinds[0, k]].float()
    return canvas


def test_a_published_file_is_read_and_written(tmp_path, caplog):
    made = FlyingShapesDataModule(str(tmp_path), num_frames=6)
    made.setup()
    splits = (
        (name, made.stages[stage]) for stage, name in (("train", "training"), ("val", "validation"), ("test", "test"))
    )
    published.write(tmp_path / "flying_shapes.h5", splits)
    with h5py.File(tmp_path / "flying_shapes.h5", "a") as file:
        features = file["training/features"]
        assert isinstance(features, h5py.Dataset)
        assert features.shape == (6, 60, 28, 28, 1) and features.dtype == np.float32
        file["training/overlaps"] = np.zeros(3)  # further arrays are ignored
    with caplog.at_level(logging.INFO):
        read = FlyingShapesDataModule(str(tmp_path), num_frames=5)  # fewer than the file has
    assert "flying_shapes.h5 instead of generating" in caplog.text
    read.setup()
    for stage, frames in read.stages.items():
        whole, part = made.stages[stage].__getitems__([3, 8]), frames.__getitems__([3, 8])
        assert all(torch.equal(part[name], whole[name][:, :5]) for name in ("frames", "groups"))
    assert FlyingShapesDataModule(str(tmp_path), num_objects=4).path is None
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert FlyingShapesDataModule(str(tmp_path), generation_seed=1).path is None
    assert not caplog.text  # no file was read
    with pytest.raises(InputError, match=r"'training' has sequences of 6 frames; data.num_frames=21 are asked for"):
        FlyingShapesDataModule(str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 1}, "num_frames=1: must be an integer of at least 2"),
        ({"num_objects": 6}, "num_objects=6: must be at most 5 for images of size=28"),
        ({"num_objects": 0}, "num_objects=0"),
        ({"max_speed": -1}, "max_speed=-1"),
        ({"size": 11}, "size=11"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        FlyingShapesDataModule("nowhere", **settings)


def test_bad_digits(digits):
    with pytest.raises(InputError, match="num_digits_used=30: must be 20, 500 or all"):
        FlyingMNISTDataModule("nowhere", str(digits), num_digits_used=30)
    with pytest.raises(InputError, match="num_objects=4: must be 1 to 3"):
        FlyingMNISTDataModule("nowhere", str(digits), num_objects=4)
    data, path = FlyingMNISTDataModule("nowhere", str(digits)), digits / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    other = gzip.compress(gzip.decompress(whole)[:-1] + b"\0")
    for content, message in (
        (whole[:-100], "cut short or damaged"),
        (b"x", "cut short or damaged"),
        (other, "another hash"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"t10k-images-idx3-ubyte.gz: .*{message}"):
            data.prepare_data()
    path.unlink()
    with pytest.raises(
        InputError, match=r"t10k-images-idx3-ubyte.gz: no such file; set data.mnist_dir .* data.download=true"
    ):
        data.prepare_data()


def test_the_real_digits(real_mnist):
    data = FlyingMNISTDataModule("nowhere", str(real_mnist), num_digits_used="all")
    data.prepare_data()
    assert [len(data.templates(stage).pixels) for stage in ("train", "val", "test")] == [50_000, 10_000, 10_000]
