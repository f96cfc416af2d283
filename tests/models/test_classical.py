"""Groupings without a trained network."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.cluster import KMeans
from tiny import few_shapes

from nem_lightning.models.classical import Chance, ConnectedComponents, Mixture, PositionKMeans, PositionMixture

SHAPE = (1, 20, 20)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def image_of(*pixels: tuple[int, int]) -> torch.Tensor:
    """An image with some bright pixels, (1, 1, 1, 20, 20)."""
    image = torch.zeros(1, 1, *SHAPE)
    for row, column in pixels:
        image[..., row, column] = 1
    return image


def test_k_means_is_that_of_scikit_learn():
    frames = few_shapes(3).frames.float()
    starts: Any = 4  # scikit-learn's type hint is too narrow
    (found,) = PositionKMeans((1, 28, 28), True, num_starts=starts)(frames, generator=seeded())
    seed = int(torch.randint(2**31 - 1, (), generator=seeded()))
    for labels, image in zip(found.labels, frames[:, 0, 0], strict=True):
        positions = np.argwhere(image.numpy() > 0)
        expected = KMeans(3, n_init=starts, random_state=seed).fit_predict(positions.astype(float))
        assert labels[image > 0].tolist() == expected.tolist() and not labels[image == 0].any()


def test_connected_components_are_those_of_each_image():
    frames = few_shapes(5).frames.float()
    (found,) = ConnectedComponents((1, 28, 28), True)(frames)
    for labels, image in zip(found.labels, frames[:, 0, 0], strict=True):
        assert np.array_equal(labels.numpy(), ndimage.label(image.numpy())[0])  # pyright: ignore[reportIndexIssue]
    diagonal = image_of((0, 0), (1, 1))
    assert ConnectedComponents(SHAPE, True)(diagonal)[0].labels.max() == 2


@pytest.mark.parametrize("model", [PositionKMeans, PositionMixture])
def test_an_image_of_few_bright_pixels(model):
    for pixels in ((), ((3, 4),), ((3, 4), (10, 10))):
        (found,) = model(SHAPE, True)(image_of(*pixels), generator=seeded())
        assert found.responsibilities.shape == (1, 3, 1, 20, 20)
        labels = [int(found.labels[0, row, column]) for row, column in pixels]
        assert len(set(labels)) == len(pixels)


def test_each_frame_of_a_sequence_is_grouped_by_itself():
    one, other = image_of((0, 0), (5, 5)), image_of((1, 1), (2, 8), (9, 9))
    frames = torch.cat([one, other, one], 1)
    found = ConnectedComponents(SHAPE, True, num_steps=2)(frames)  # steps 1 and 2 explain frames 2 and 3
    assert [int(grouping.labels.max()) for grouping in found] == [3, 2]
    still = ConnectedComponents(SHAPE, True, num_steps=2)(one)
    assert still[0] is still[1]


def test_chance_is_uniform():
    (found,) = Chance(SHAPE, True, num_components=4)(torch.zeros(50, 1, *SHAPE), generator=seeded())
    shares = found.responsibilities.mean((0, 2, 3, 4))
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.02) and (found.responsibilities.sum(1) == 1).all()


@pytest.mark.parametrize("binary", [True, False])
def test_all_images_of_the_mixture_become_the_image_itself(binary):
    generator = seeded()
    image = torch.rand(4, 1, 1, 6, 5, generator=generator, dtype=torch.float64)
    image = image.round() if binary else image
    *_, last = Mixture((1, 6, 5), binary)(image, generator=generator)
    torch.testing.assert_close(last.mean, image.expand(-1, 3, -1, -1, -1))
    shares = last.responsibilities.mean((3, 4), keepdim=True)
    torch.testing.assert_close(last.responsibilities, shares.expand_as(last.responsibilities))
