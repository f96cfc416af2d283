"""Groupings that cost nothing: what a trained model has to beat."""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from reproduce.scoring import Grouping

NUM_GROUPS = 3
"""K of those that have one."""


def kmeans(image: np.ndarray, seed: int) -> np.ndarray:
    """k-means on the (x, y) of foreground pixels, K=3, best of 10 starts.

    (H, W), 0 where background -> labels (H, W), 0 to K-1, 0 in the background.
    """
    return _of_positions(image, lambda xy, k: KMeans(k, n_init=10, random_state=seed).fit_predict(xy))


def gmm(image: np.ndarray, seed: int) -> np.ndarray:
    """A Gaussian mixture on the (x, y) of foreground pixels, K=3, full covariances; else as :func:`kmeans`."""
    return _of_positions(image, lambda xy, k: GaussianMixture(k, random_state=seed).fit_predict(xy))


def components(image: np.ndarray, seed: int) -> np.ndarray:
    """4-connected components of the foreground; as many labels as there are, from 1. ``seed`` is not used."""
    return ndimage.label(image)[0]


def chance(image: np.ndarray, seed: int) -> np.ndarray:
    """One of K=3 for each pixel, uniformly at random; else as :func:`kmeans`."""
    rng = np.random.default_rng([seed, *np.packbits(image.astype(bool))])  # other draws for another image
    return rng.integers(NUM_GROUPS, size=image.shape)


BASELINES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "kmeans": kmeans,
    "gmm": gmm,
    "components": components,
    "chance": chance,
}


def grouper(name: str, seed: int = 0) -> Callable[[Tensor, int], Iterator[Grouping]]:
    """A baseline as :func:`reproduce.scoring.score` takes it.

    Args:
        name: of ``BASELINES``.
        seed: of its random numbers.
    """
    label = BASELINES[name]

    def group(image: Tensor, index: int) -> Iterator[Grouping]:
        with threadpool_limits(1), warnings.catch_warnings():  # some hundred points: threads only wait
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = np.stack([label(foreground, seed) for foreground in image[:, 0].cpu().numpy()])
        yield Grouping(torch.from_numpy(labels.astype(np.int64)))

    return group


def _of_positions(image: np.ndarray, cluster: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Cluster the positions of foreground pixels; fewer clusters where there are fewer pixels than K."""
    labels = np.zeros(image.shape, dtype=int)
    positions = np.argwhere(image).astype(float)  # (N, 2), pixels
    if len(positions):
        labels[image > 0] = cluster(positions, min(NUM_GROUPS, len(positions)))
    return labels
