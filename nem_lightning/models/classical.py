"""Groupings without a trained network, which a trained model has to beat.

Shapes: B images, K components, C channels, H by W pixels, N = HW pixels.
"""

import abc
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import sklearn.cluster
import sklearn.mixture
import torch
from scipy import ndimage
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from nem_lightning.models import starts
from nem_lightning.models.grouping import Grouping, GroupingModel, frame_pair
from nem_lightning.models.likelihoods import likelihood_for


class Untrained(GroupingModel):
    """A grouping model without weights."""

    def training_loss(self, frames: Tensor, *, epoch: int = 0, generator: torch.Generator | None = None) -> NoReturn:
        """Refuse: there is nothing to train."""
        raise NotImplementedError(f"{type(self).__name__} is not trained")


class ClassicalModel(Untrained):
    """Groups images by a function of single images, on one thread. A subclass implements :meth:`group`.

    Of a sequence, the frame that a step explains is grouped, each frame by itself.

    Args:
        image_shape: (C, H, W).
        binary: whether pixels are 0 or 1.
        num_components: K.
        num_steps: T.
        num_starts: of the clustering; the best one is kept.
    """

    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Grouping]:
        """Yield a grouping of each frame that a step explains; of a still image, the same one at each step."""

        def grouping(images: Tensor) -> Grouping:
            with threadpool_limits(1):  # with few points, more threads only wait for each other
                return self.group(images, num_components, num_starts, generator)

        if frames.shape[1] == 1:
            yield from [grouping(frames[:, 0])] * num_steps
            return
        for step in range(1, num_steps + 1):
            yield grouping(frame_pair(frames, step)[1])

    @abc.abstractmethod
    def group(
        self, images: Tensor, num_components: int, num_starts: int, generator: torch.Generator | None
    ) -> Grouping:
        """Group the pixels of images, (B, C, H, W)."""


class PositionKMeans(ClassicalModel):
    """Cluster the (row, column) of an image's bright pixels by scikit-learn's k-means.

    Dark pixels are 0 in all channels, and belong to component 0. Images without dark pixels come apart in blocks.
    """

    def group(
        self, images: Tensor, num_components: int, num_starts: int, generator: torch.Generator | None
    ) -> Grouping:
        """Group the pixels of images, (B, C, H, W); fewer components if an image has fewer bright pixels than K."""
        seed = _seed(generator)

        def label(positions: np.ndarray) -> np.ndarray:
            return self.cluster(positions, min(num_components, len(positions)), num_starts, seed)

        labels = np.zeros((len(images), *images.shape[2:]), dtype=int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than K
            for of_image, bright in zip(labels, (images > 0).any(1).cpu().numpy(), strict=True):
                if bright.any():
                    of_image[bright] = label(np.argwhere(bright).astype(float))
        return one_hot(labels, num_components, images)

    def cluster(self, positions: np.ndarray, k: int, num_starts: int, seed: int) -> np.ndarray:
        """Give the labels of positions: (N, 2) -> (N,), integers from 0 to k - 1."""
        n_init: Any = num_starts  # scikit-learn's type hint is too narrow
        return sklearn.cluster.KMeans(k, n_init=n_init, random_state=seed).fit_predict(positions)


class PositionMixture(PositionKMeans):
    """Cluster like :class:`PositionKMeans`, but by scikit-learn's Gaussian mixture with full covariances."""

    def cluster(self, positions: np.ndarray, k: int, num_starts: int, seed: int) -> np.ndarray:
        """Give the labels of positions: (N, 2) -> (N,), integers from 0 to k - 1; all 0 for a single position."""
        if len(positions) < 2:  # scikit-learn refuses it
            return np.zeros(len(positions), dtype=int)
        return sklearn.mixture.GaussianMixture(k, n_init=num_starts, random_state=seed).fit_predict(positions)


class ConnectedComponents(ClassicalModel):
    """Label the connected components of an image's bright pixels: left, right, above and below are neighbours.

    Dark pixels are component 0. There are as many components as an image has, whatever K is.
    """

    def group(
        self, images: Tensor, num_components: int, num_starts: int, generator: torch.Generator | None
    ) -> Grouping:
        """Group the pixels of images, (B, C, H, W)."""
        bright = (images > 0).any(1).cpu().numpy()
        neighbours = np.zeros((3, 3, 3), dtype=int)
        neighbours[1, 1, :] = neighbours[1, :, 1] = 1  # within an image, none between images
        of_batch: Any = ndimage.label(bright, neighbours)  # labels of the whole batch, and their count
        found: np.ndarray = of_batch[0]
        first = np.where(found > 0, found, found.max() + 1).min((1, 2), keepdims=True)
        labels = np.where(found > 0, found - first + 1, 0)
        return one_hot(labels, num_components, images)


class Chance(ClassicalModel):
    """Draw a component for each pixel, uniformly."""

    def group(
        self, images: Tensor, num_components: int, num_starts: int, generator: torch.Generator | None
    ) -> Grouping:
        """Group the pixels of images, (B, C, H, W)."""
        shape = (len(images), num_components, 1, *images.shape[2:])
        draws = torch.rand(shape, dtype=images.dtype, device=images.device, generator=generator)
        return Grouping((draws == draws.amax(1, keepdim=True)).to(images))


class Mixture(Untrained):
    """Fit a mixture of K whole images to each image by EM, without any network: what neural EM generalises.

    Every component has a mean of its own for every pixel, so

        M-step:   mu_kn = gamma_nk x_n / gamma_nk = x_n,      pi_k = mean_n gamma_nk,
        E-step:   gamma_nk proportional to pi_k P(x_n | mu_kn),

    and after one step all components are the image itself. Nothing ties the pixels of an object together: that is what
    the network of neural EM is for. gamma begins as noise.

    Args:
        image_shape: (C, H, W).
        binary: whether pixels are 0 or 1 (a mixture of Bernoulli distributions), or real values (of Gaussians).
        sigma: standard deviation of the Gaussians, in units of the pixel value.
        num_components: K.
        num_steps: T.
        num_starts: not used; all starts end the same.

    Source: Dempster, Laird and Rubin 1977.
    """

    stills_only = True

    def __init__(
        self,
        image_shape: Sequence[int],
        binary: bool,
        sigma: float = 0.25,
        num_components: int = 3,
        num_steps: int = 10,
        num_starts: int = 1,
    ) -> None:
        super().__init__(image_shape, binary, num_components, num_steps, num_starts)
        self.likelihood = likelihood_for(binary, sigma)

    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Grouping]:
        """Yield the groupings after steps 1 to T."""
        image = frames[:, :1]  # (B, 1, C, H, W)
        gamma = starts.noise(frames[:, 0], num_components, generator)
        for _ in range(num_steps):
            mean = gamma * image / gamma
            shares = gamma.mean((3, 4), keepdim=True)  # pi
            params = mean.clamp(1e-6, 1 - 1e-6).logit() if self.binary else mean
            gamma = (self.likelihood.log_prob(image, params) + shares.log()).softmax(1)
            yield Grouping(gamma, mean)


def _seed(generator: torch.Generator | None) -> int:
    """Draw a seed for scikit-learn."""
    device = None if generator is None else generator.device
    return int(torch.randint(2**31 - 1, (), generator=generator, device=device))


def one_hot(labels: np.ndarray, num_components: int, images: Tensor) -> Grouping:
    """Give labels, (B, H, W) from 0, as responsibilities of 0 and 1; of more than K components if there are more."""
    count = max(num_components, int(labels.max(initial=0)) + 1)
    found = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), count)  # (B, H, W, K)
    return Grouping(found.movedim(-1, 1).unsqueeze(2).to(images))
