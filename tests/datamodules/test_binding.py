"""Corners, Bars, MNIST + shape and Multi-MNIST."""

import numpy as np
import pytest
import torch
from digits import make_digits

from nem_lightning.datamodules import BarsDataModule, CornersDataModule, MNISTShapeDataModule, MultiMNISTDataModule
from nem_lightning.datamodules.shapes import MASKS
from nem_lightning.errors import InputError

FEW = list(range(300))


@pytest.fixture
def mnist_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("nem_lightning.datamodules.mnist.IMAGES", make_digits(tmp_path / "mnist"))
    return str(tmp_path / "mnist")


def test_bars_are_six_distinct_rows_and_six_distinct_columns():
    batch = BarsDataModule().load("test").__getitems__(FEW)
    for image, groups in zip(batch["frames"][:, 0, 0], batch["groups"][:, 0], strict=True):
        rows, columns = image.all(1), image.all(0)
        assert rows.sum() == 6 and columns.sum() == 6
        assert torch.equal(image.bool(), rows[:, None] | columns)
        assert torch.equal(groups > 0, rows[:, None] ^ columns)  # crossings are not scored
        for index in (*torch.nonzero(rows), *(20 + at for at in torch.nonzero(columns))):
            bar = groups[index[0]] if index[0] < 20 else groups[:, index[0] - 20]
            assert len(set(bar[bar > 0].tolist())) == 1
    assert batch["groups"].max() == 12
    alone = BarsDataModule(train_on="single").load("train")
    assert len(alone) == 10_000 and (alone.__getitems__(FEW)["frames"].sum((1, 2, 3, 4)) == 20).all()


def test_corners_have_a_square_and_four_corners():
    data = CornersDataModule(train_on="single")
    alone = data.load("train").__getitems__(FEW)["frames"][:, 0, 0]
    pixels = alone.sum((1, 2))
    assert set(pixels.tolist()) == {16, 64} and 0.4 < (pixels == 64).float().mean() < 0.6
    square = alone[pixels == 64][0]
    rows, columns = torch.nonzero(square, as_tuple=True)
    assert rows.max() - rows.min() == 19 and columns.max() - columns.min() == 19
    middle = square[rows.min() + 5 : rows.min() + 15, columns.min() : columns.min() + 20]
    assert not middle.any()
    corners = {tuple(crop(corner).flatten().tolist()) for corner in alone[pixels == 16]}
    assert len(corners) == 4 and all(sum(corner) == 16 for corner in corners)
    batch = data.load("test").__getitems__(FEW)
    assert batch["groups"].max() == 5 and ((batch["groups"] == 1).sum((1, 2, 3)) <= 64).all()
    assert ((batch["groups"] == 3).sum((1, 2, 3)) <= 16).all()


def crop(image: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.nonzero(image, as_tuple=True)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_mnist_and_shape(mnist_dir):
    data = MNISTShapeDataModule(mnist_dir)
    batch, digits = data.load("test").__getitems__(FEW), data.digits("test")
    for image, groups in zip(batch["frames"][:50, 0, 0].bool(), batch["groups"][:50, 0], strict=True):
        only = (groups == 1).numpy()
        assert any((only <= digit).all() and not ((digit > only) & ~image.numpy()).any() for digit in digits)
    areas = (batch["groups"] == 2).sum((1, 2, 3))
    assert areas.max() <= max(mask.sum() for mask in MASKS)
    alone = MNISTShapeDataModule(mnist_dir, train_on="single").load("train").__getitems__(FEW)
    assert alone["groups"].max() == 1 and torch.equal(alone["groups"] > 0, alone["frames"][:, :, 0] > 0)


def test_multi_mnist_has_whole_digits(mnist_dir):
    data = MultiMNISTDataModule(mnist_dir, train_on="single")
    digits = {tuple(crop(torch.from_numpy(digit)).int().flatten().tolist()) for digit in data.digits("train")}
    for image in data.load("train").__getitems__(FEW)["frames"][:50, 0, 0]:
        assert tuple(crop(image).int().flatten().tolist()) in digits
    batch = data.load("test").__getitems__(FEW)
    assert batch["frames"].shape == (300, 1, 1, 48, 48) and batch["groups"].max() == 3


@pytest.mark.parametrize("kind", [BarsDataModule, CornersDataModule])
def test_a_seed_gives_a_set_and_stages_differ(kind):
    one, same, other = (kind(generation_seed=seed).load("test").__getitems__(FEW)["frames"] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(one, kind().load("val").__getitems__(FEW)["frames"])
    assert [len(kind().load(stage)) for stage in ("train", "val", "test")] == [50_000, 10_000, 10_000]


def test_what_they_refuse(tmp_path):
    with pytest.raises(InputError, match="train_on='all': must be 'training' or 'single'"):
        BarsDataModule(train_on="all")
    with pytest.raises(InputError, match="generation_seed=-1"):
        CornersDataModule(generation_seed=-1)
    with pytest.raises(InputError, match=r"no such file; set data\.mnist_dir"):
        MultiMNISTDataModule(str(tmp_path)).prepare_data()


def test_places_are_uniform():
    data = CornersDataModule(train_on="single")
    alone = data.load("train").positions[:, 0, 0].numpy()
    corners = alone[data.load("train").kinds[:, 0].numpy() > 0]
    assert corners.min() == 0 and corners.max() == 23
    assert np.bincount(corners[:, 0]).std() / np.bincount(corners[:, 0]).mean() < 0.15
