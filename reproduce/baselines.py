"""Groupings without learning, which a trained model has to beat."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from nem_lightning.models.grouping import Grouping, GroupingModel

Label = Callable[[np.ndarray, int, int], np.ndarray]
"""Takes an image (H, W, C), K and a seed, and gives labels (H, W), integers from 0."""


STARTS: Any = 10
"""Starts of k-means; ``Any``, because scikit-learn's type hint is too narrow."""


class Baseline(GroupingModel):
    """Groups each image by a function that learns nothing; each step gives the same grouping, without means.

    Args:
        label: the function.
        image_shape: (C, H, W).
        binary: whether pixels are 0 or 1.
        num_components: K.
        seed: of its random numbers.
    """

    def __init__(
        self, label: Label, image_shape: Sequence[int], binary: bool = True, num_components: int = 3, seed: int = 0
    ) -> None:
        super().__init__(image_shape, binary, num_components)
        self.label, self.seed = label, seed

    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Grouping]:
        """Yield the labels as responsibilities of 0 and 1, (B, K, 1, H, W); K may differ from ``num_components``."""
        images = frames[:, 0].permute(0, 2, 3, 1).double().cpu().numpy()
        with threadpool_limits(1), warnings.catch_warnings():  # with few points, more threads only wait for each other
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than K give fewer labels
            labels = np.stack([self.label(image, num_components, self.seed) for image in images])
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long())  # (B, H, W, K)
        grouping = Grouping(one_hot.movedim(-1, 1).unsqueeze(2).to(frames))
        yield from [grouping] * num_steps

    def training_loss(self, frames: Tensor, *, epoch: int = 0, generator: torch.Generator | None = None) -> NoReturn:
        """Refuse: there is nothing to train."""
        raise NotImplementedError("a baseline is not trained")


def kmeans(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Cluster the (x, y) of foreground pixels by k-means, the best of 10 starts; background is 0."""
    return _of_positions(image, k, lambda xy, k: KMeans(k, n_init=STARTS, random_state=seed).fit_predict(xy))


def gmm(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Cluster like :func:`kmeans`, but by a Gaussian mixture with full covariances."""
    return _of_positions(image, k, lambda xy, k: GaussianMixture(k, random_state=seed).fit_predict(xy))


def components(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Label the 4-connected components of the foreground from 1, as many as there are."""
    return ndimage.label(image[..., 0])[0]  # type: ignore[index]  # labels and their count


def chance(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Draw one of K labels for each pixel, uniformly."""
    pixels = np.packbits(image[..., 0].astype(bool)).tolist()
    rng = np.random.default_rng([seed, *pixels])  # each image has its own draws
    return rng.integers(k, size=image.shape[:2])


BASELINES: dict[str, Label] = {"kmeans": kmeans, "gmm": gmm, "components": components, "chance": chance}
"""By the name of the row."""


def model(name: str, image_shape: Sequence[int]) -> Baseline:
    """Give the model of a row that is not trained."""
    return Baseline(BASELINES[name], image_shape)


def _of_positions(image: np.ndarray, k: int, cluster: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Cluster the positions of foreground pixels; fewer clusters if there are fewer pixels than K."""
    labels = np.zeros(image.shape[:2], dtype=int)
    positions = np.argwhere(image[..., 0]).astype(float)  # (N, 2), pixels
    if len(positions):
        labels[image[..., 0] > 0] = cluster(positions, min(k, len(positions)))
    return labels
