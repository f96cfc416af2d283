"""The distribution of a pixel given its component: P(x | mu), its mean, and its divergence from the prior.

A decoder gives ``params`` of shape (B, K, C, H, W). Each class here reads them as the parameters of
one distribution per image, component, channel and pixel. Channels of a pixel are independent given
its component, so their log densities are summed: results have the shape (B, K, 1, H, W).
"""

import abc
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nem_lightning.errors import require_flag, require_positive


def softplus(logits: Tensor) -> Tensor:
    """Give log(1 + exp(logits)). Above 20, PyTorch's default gives the logit itself, which is inexact in float64."""
    return F.softplus(logits, threshold=40)


class Likelihood(abc.ABC):
    """One distribution for each image, component, channel and pixel."""

    binary: ClassVar[bool]
    """Whether pixels must be 0 or 1."""

    @abc.abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Give mu, of the shape of ``params``."""

    @abc.abstractmethod
    def prob(self, image: Tensor, params: Tensor) -> Tensor:
        """Give P(x | mu): (B, 1, C, H, W), (B, K, C, H, W) -> (B, K, 1, H, W)."""

    @abc.abstractmethod
    def log_prob(self, image: Tensor, params: Tensor) -> Tensor:
        """Give log P(x | mu), in nats: (B, 1, C, H, W), (B, K, C, H, W) -> (B, K, 1, H, W)."""

    @abc.abstractmethod
    def kl_from_prior(self, prior: float, params: Tensor) -> Tensor:
        """Give KL(P(. | prior) || P(. | mu)), in nats: (B, K, C, H, W) -> (B, K, 1, H, W)."""


class Bernoulli(Likelihood):
    """Binary pixels, x in {0, 1}. ``params`` are logits."""

    binary = True

    def mean(self, params: Tensor) -> Tensor:
        """Give mu = sigmoid(params), of the same shape."""
        return torch.sigmoid(params)

    def prob(self, image: Tensor, params: Tensor) -> Tensor:
        """Give P(x | mu): mu if x = 1, and 1 - mu if x = 0; x must be 0 or 1.

        (B, 1, C, H, W), (B, K, C, H, W) -> (B, K, 1, H, W). For one channel, faster than exp(log_prob).
        """
        if params.shape[2] > 1:  # the gradient of a product over channels would make a GPU wait
            return self.log_prob(image, params).exp()
        return torch.sigmoid((2 * image.to(params.dtype) - 1) * params)

    def log_prob(self, image: Tensor, params: Tensor) -> Tensor:
        """Give log P(x | mu) = x log mu + (1 - x) log(1 - mu), in nats.

        Args:
            image: (B, 1, C, H, W) or anything that broadcasts with ``params``.
            params: (B, K, C, H, W), logits.

        Returns:
            (B, K, 1, H, W).
        """
        return _over_channels(image * params - softplus(params))

    def kl_from_prior(self, prior: float, params: Tensor) -> Tensor:
        """Give KL(Bernoulli(prior) || Bernoulli(mu)), in nats: (B, K, C, H, W) -> (B, K, 1, H, W).

        For the black prior, p = 0, this is -log(1 - mu).
        """
        if prior == 0:
            return _over_channels(softplus(params))
        p = torch.as_tensor(prior, dtype=params.dtype, device=params.device)
        negative_entropy = torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)
        return _over_channels(negative_entropy + softplus(params) - p * params)


class Gaussian(Likelihood):
    """Real-valued pixels with a fixed standard deviation. ``params`` are the means.

    Args:
        sigma: standard deviation, in units of the pixel value. The published E-step uses 0.25, the
            published loss 1.0.

    Raises:
        InputError: sigma is not positive.
    """

    binary = False

    def __init__(self, sigma: float = 0.25) -> None:
        require_positive("sigma", sigma)
        self.sigma = sigma

    def mean(self, params: Tensor) -> Tensor:
        """Give mu = params."""
        return params

    def prob(self, image: Tensor, params: Tensor) -> Tensor:
        """Give the density N(x; mu, sigma^2): (B, 1, C, H, W), (B, K, C, H, W) -> (B, K, 1, H, W)."""
        return self.log_prob(image, params).exp()

    def log_prob(self, image: Tensor, params: Tensor) -> Tensor:
        """Give log N(x; mu, sigma^2), in nats: (B, 1, C, H, W), (B, K, C, H, W) -> (B, K, 1, H, W)."""
        log_density = -0.5 * ((image - params) / self.sigma) ** 2
        return _over_channels(log_density - math.log(self.sigma * math.sqrt(2 * math.pi)))

    def kl_from_prior(self, prior: float, params: Tensor) -> Tensor:
        """Give KL(N(prior, sigma^2) || N(mu, sigma^2)), in nats: (B, K, C, H, W) -> (B, K, 1, H, W)."""
        return _over_channels(0.5 * ((params - prior) / self.sigma) ** 2)


def likelihood_for(binary: bool, sigma: float = 0.25) -> Likelihood:
    """Give the likelihood for a kind of pixels: Bernoulli for binary ones, Gaussian for real ones.

    Args:
        binary: whether pixels are 0 or 1.
        sigma: standard deviation of the Gaussian; unused for binary pixels.

    Raises:
        InputError: sigma is not positive, or binary is not true or false.
    """
    require_flag("binary", binary)
    require_positive("sigma", sigma)
    return Bernoulli() if binary else Gaussian(sigma)


def _over_channels(values: Tensor) -> Tensor:
    """Sum over channels, (B, K, C, H, W) -> (B, K, 1, H, W)."""
    return values if values.shape[2] == 1 else values.sum(2, keepdim=True)
