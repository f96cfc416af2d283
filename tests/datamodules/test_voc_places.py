"""Pascal VOC's pixels as points."""

import numpy as np
import pytest
import torch
from devkit import make_devkit

from nem_lightning.datamodules import VOCDataModule, VOCPlacesDataModule
from nem_lightning.datamodules.voc_places import whitening_of


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The points and the images of a small devkit."""
    folder = tmp_path_factory.mktemp("voc")
    devkit = make_devkit(folder)
    points, images = (
        kind(str(devkit), str(folder / "cache"), size=10) for kind in (VOCPlacesDataModule, VOCDataModule)
    )
    points.prepare_data()
    return points, images


def test_colours_are_whitened_by_the_training_images(both):
    points, images = both
    pixels = images.load("train").frames[:, 0].numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255.0
    covariance = np.cov(pixels, bias=True)
    roots = np.linalg.cholesky(np.linalg.inv(covariance))  # whitens too, but turned
    for stage in ("train", "test"):
        own = points.load(stage).frames[:, 0, :3].transpose(0, 1).flatten(1).double().numpy()
        given = images.load(stage).frames[:, 0].numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255.0
        expected = roots.T @ (given - pixels.mean(1, keepdims=True))
        own = (own - 0.5) / 0.2
        np.testing.assert_allclose(own.T @ own, expected.T @ expected, atol=1e-3)  # equal but for a turn
    whitening = whitening_of(images.load("train").frames[:, 0] / 255.0)[1].numpy()
    np.testing.assert_allclose(whitening, whitening.T, atol=1e-4)  # closest to the colours, so not turned


def test_places_are_row_column_and_distance_from_the_middle(both):
    points, _ = both
    assert points.image_shape == (6, 10, 10)
    frames = points.load("test").frames
    assert frames.shape == (24, 1, 6, 10, 10)
    row, column, distance = (frames[:, 0, 3:] - 0.5).unbind(1)
    for of in (row, column, distance):
        assert torch.equal(of, of[:1].expand_as(of))
        assert of.mean().item() == pytest.approx(0, abs=1e-5)
        assert of[0].std(correction=0).item() == pytest.approx(0.2, abs=1e-5)
    assert torch.allclose(row[0].diff(dim=0), row[0, 1, 0] - row[0, 0, 0], atol=1e-6) and row[0, 0, 0] < 0
    assert torch.allclose(column[0], row[0].T)
    assert distance[0].argmax() in (0, 9, 90, 99) and distance[0].argmin() in (44, 45, 54, 55)


def test_groups_are_those_of_the_images(both):
    points, images = both
    for stage in ("train", "val", "test"):
        assert torch.equal(points.load(stage).groups, images.load(stage).groups)


def test_grey_photographs_stay_finite():
    grey = torch.rand(4, 1, 5, 5).expand(-1, 3, -1, -1)
    mean, whitening = whitening_of(grey)
    white = torch.einsum("nchw,cd->ndhw", grey - mean[:, None, None], whitening)
    assert white.isfinite().all() and white.abs().max() < 5
