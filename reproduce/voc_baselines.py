"""Ways to split an image into K segments without learning.

Each takes an image (H, W, 3) in [0, 1], K and a seed, and gives labels (H, W), integers 0 to K - 1 at most. Functions
that draw nothing ignore the seed. Colours are unconverted RGB, as in RNN-EM's likelihood.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from skimage import graph, segmentation
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from nem_lightning.datamodules.voc_places import places
from nem_lightning.models.classical import ClassicalModel, one_hot
from nem_lightning.models.grouping import Grouping

Label = Callable[[np.ndarray, int, int], np.ndarray]
STARTS: Any = 10
"""Starts of k-means; ``Any``, because scikit-learn's type hint is too narrow."""


class Segmentation(ClassicalModel):
    """Groups each image by one of the functions below.

    Args:
        label: the function.
        image_shape: (C, H, W).
        num_components: K.
        seed: of its random numbers.
    """

    def __init__(self, label: Label, image_shape: Sequence[int], num_components: int, seed: int) -> None:
        super().__init__(image_shape, False, num_components)
        self.label, self.seed = label, seed

    def group(
        self, images: Tensor, num_components: int, num_starts: int, generator: torch.Generator | None
    ) -> Grouping:
        """Group the pixels of images, (B, C, H, W)."""
        pixels = images.permute(0, 2, 3, 1).double().cpu().numpy()
        return one_hot(np.stack([self.label(image, num_components, self.seed) for image in pixels]), 1, images)


def colour_k_means(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Cluster pixels by k-means on their colours: the best of ten starts."""
    return _k_means(image, k, seed)


def position_colour_k_means(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Cluster pixels by k-means on (red, green, blue, row, column), all with equal weight.

    Colours lie in [0, 1]; coordinates go from 0 to 1 across the image.
    """
    return _k_means(np.concatenate([image, _positions(*image.shape[:2])], axis=2), k, seed)


def slic(image: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Merge about 100 SLIC superpixels to K segments.

    Source: Achanta et al. 2012, as in scikit-image with its compactness 10, in CIELAB.
    """
    return merged(image, segmentation.slic(image, n_segments=100, compactness=10, start_label=0), k)


def felzenszwalb(image: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Merge the segments of Felzenszwalb and Huttenlocher to K; fewer if their method finds fewer.

    Source: Felzenszwalb and Huttenlocher 2004, as in scikit-image with scale 50, sigma 0.5, at least 20 pixels.
    """
    return merged(image, segmentation.felzenszwalb(image, scale=50, sigma=0.5, min_size=20), k)


def compact_blocks(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Split the image into K blocks, the same for every image: k-means on (row, column)."""
    return _parts(_positions, *image.shape[:2], k, seed)


def middle_and_sides(image: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Split the image into K parts, the same for every image: k-means on the three places of ``data=voc_places``.

    With K=3, these are a disc in the middle, and two halves of what is around.
    """
    return _parts(_places, *image.shape[:2], k, seed)


def strips(image: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Split the image into K vertical strips of equal width."""
    height, width = image.shape[:2]
    return np.tile(np.arange(width) * k // width, (height, 1))


def whole_image(image: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Give one segment. Its score shows what no grouping at all would get."""
    return np.zeros(image.shape[:2], dtype=int)


BASELINES: dict[str, Label] = {
    "colour k-means": colour_k_means,
    "position + colour k-means": position_colour_k_means,
    "SLIC merged": slic,
    "Felzenszwalb merged": felzenszwalb,
    "compact blocks": compact_blocks,
    "middle and sides": middle_and_sides,
    "vertical strips": strips,
    "whole image": whole_image,
}
SEEDED = ("colour k-means", "position + colour k-means", "compact blocks", "middle and sides")
"""Baselines that draw random numbers."""


def merged(image: np.ndarray, segments: np.ndarray, k: int) -> np.ndarray:
    """Merge neighbouring segments until K are left (or fewer, if there were fewer).

    Each merge is the one that adds least to the sum of squared distances between pixels and their segment's mean colour
    (Ward's criterion, over neighbours only). Merged segments are connected if ``segments`` are.

    Args:
        image: (H, W, 3).
        segments: (H, W), integers.
        k: at least 1.

    Returns:
        (H, W), 0 to K - 1.
    """
    segments = np.unique(segments, return_inverse=True)[1].reshape(segments.shape)
    if segments.max() < k:  # nothing to merge; scikit-image's graph of a single region is empty
        return segments
    regions = graph.rag_mean_color(image, segments)
    for a, b in regions.edges:
        regions.edges[a, b]["weight"] = _cost(regions.nodes[a], regions.nodes[b])
    while len(regions) > k:
        a, b, _ = min(regions.edges(data="weight"), key=itemgetter(2))
        for name in ("pixel count", "total color"):
            regions.nodes[b][name] = regions.nodes[a][name] + regions.nodes[b][name]
        regions.merge_nodes(a, b, weight_func=_weight)
    labels = np.zeros(segments.max() + 1, dtype=int)
    for label, region in enumerate(regions):
        labels[regions.nodes[region]["labels"]] = label
    return labels[segments]


def _cost(one: dict, other: dict) -> float:
    """Give the increase of the sum of squares if two regions are merged."""
    n, m = one["pixel count"], other["pixel count"]
    return n * m / (n + m) * float(np.square(one["total color"] / n - other["total color"] / m).sum())


def _weight(regions: graph.RAG, source: int, kept: int, neighbour: int) -> dict[str, float]:
    return {"weight": _cost(regions.nodes[kept], regions.nodes[neighbour])}


def _k_means(features: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Cluster by k-means: (H, W, F) -> (H, W)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer colours than K give fewer segments
        found = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(features.reshape(-1, features.shape[2]))
    return found.reshape(features.shape[:2])


def _positions(height: int, width: int) -> np.ndarray:
    """Give row and column of each pixel, from 0 to 1, (H, W, 2)."""
    return np.stack(np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij"), axis=2)


def _places(height: int, width: int) -> np.ndarray:
    """Give row, column and distance from the middle of each pixel, each of variance 1, (H, W, 3)."""
    return places(height, width).permute(1, 2, 0).numpy()


@functools.cache
def _parts(coordinates: Callable[[int, int], np.ndarray], height: int, width: int, k: int, seed: int) -> np.ndarray:
    """Cluster an image's coordinates, once for all images of a size."""
    return _k_means(coordinates(height, width), k, seed)
