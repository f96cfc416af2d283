"""Expectation maximisation with a neural M-step: the loop of the paper.

Shapes: B images, K components, C channels, H by W pixels, D state size.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nem_lightning.errors import require, require_count, require_number


class Iterate(NamedTuple):
    """Where EM stands after a step."""

    state: Tensor
    """theta, (B, K, D)."""
    params: Tensor
    """What the decoder gives, (B, K, C, H, W): logits for Bernoulli, means for Gaussian pixels."""
    mean: Tensor
    """mu, (B, K, C, H, W)."""
    log_responsibilities: Tensor
    """log gamma, (B, K, 1, H, W); exp of it sums to 1 over K."""

    @property
    def responsibilities(self) -> Tensor:
        """gamma, (B, K, 1, H, W)."""
        return self.log_responsibilities.exp()

    @property
    def labels(self) -> Tensor:
        """The component that each pixel belongs to most, (B, H, W), integers 0 to K-1."""
        return self.log_responsibilities.squeeze(2).argmax(1)


class NeuralEM(nn.Module):
    """Neural EM: alternate an E-step with a learned M-step, the K components sharing its weights.

    Args:
        m_step: :class:`~nem_lightning.m_steps.GradientMStep` (N-EM),
            :class:`~nem_lightning.m_steps.RecurrentMStep` (RNN-EM), or a module called like them.
        likelihood: P(x | mu) of the E-step, from :mod:`nem_lightning.likelihoods`.
        smoothing: added to each component's probability of a pixel before normalising, at least 0;
            the published code uses 1e-6.
        initial_mean: mu before the first step.
        differentiate_responsibilities: whether gradients flow through gamma, in the loop and in the loss.

    Raises:
        InputError: smoothing below 0.

    Source: Greff et al. 2017, section 2.
    """

    def __init__(
        self,
        m_step: nn.Module,
        likelihood,
        smoothing: float = 1e-6,
        initial_mean: float = 0.0,
        differentiate_responsibilities: bool = True,
    ) -> None:
        super().__init__()
        require_number("smoothing", smoothing, minimum=0)
        require_number("initial_mean", initial_mean)
        self.m_step = m_step
        self.likelihood = likelihood
        self.smoothing = smoothing
        self.initial_mean = initial_mean
        self.differentiate_responsibilities = differentiate_responsibilities

    def forward(
        self,
        image: Tensor,
        corrupted: Tensor | None = None,
        *,
        num_components: int = 3,
        num_steps: int = 10,
        generator: torch.Generator | None = None,
    ) -> list[Iterate]:
        """Unroll EM on a batch of images.

        Args:
            image: (B, C, H, W), what the E-step explains.
            corrupted: (B, C, H, W), what the M-step sees; ``image`` by default.
            num_components: K, at least 1.
            num_steps: T, at least 1.
            generator: draws the first responsibilities.

        Returns:
            The trajectory: the iterates after steps 1 to T.

        Raises:
            InputError: K or T below 1, or an image shape other than the M-step's.
        """
        require_count("num_components", num_components)
        require_count("num_steps", num_steps)
        shape = tuple(image.shape[1:])
        require(
            shape == tuple(self.m_step.image_shape),
            f"image shape {shape}: this model takes {tuple(self.m_step.image_shape)} (channels, height, width)",
        )
        corrupted = image if corrupted is None else corrupted
        iterate = self.start(image, num_components, generator)
        trajectory = []
        for _ in range(num_steps):
            iterate = self.step(iterate, corrupted, image)
            trajectory.append(iterate)
        return trajectory

    def start(self, image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Iterate:
        """theta = 0, mu = initial_mean, gamma = |N(0, 1)| normalised over K. No ``params`` yet (mu in its place)."""
        state = image.new_zeros(len(image), num_components, self.m_step.state_size)
        mean = image.new_full((len(image), num_components, *image.shape[1:]), self.initial_mean)
        return Iterate(state, mean, mean, first_responsibilities(image, num_components, generator).log())

    def step(self, iterate: Iterate, corrupted: Tensor, image: Tensor) -> Iterate:
        """One step of EM.

        The M-step's input and the E-step's target are arguments of each step, so that a sequence
        (predict the next frame) needs no other loop.

        Args:
            iterate: where EM stands.
            corrupted: (B, C, H, W), the M-step's input.
            image: (B, C, H, W), the E-step's target.
        """
        residual = iterate.responsibilities * (corrupted.unsqueeze(1) - iterate.mean)  # (B, K, C, H, W)
        state, params = self.m_step(residual, iterate.state)
        return Iterate(state, params, self.likelihood.mean(params), self.e_step(image, params))

    def e_step(self, image: Tensor, params: Tensor) -> Tensor:
        """log gamma, with gamma_k proportional to P(x | mu_k) + smoothing and pi uniform (equation 3).

        Args:
            image: (B, C, H, W).
            params: (B, K, C, H, W).

        Returns:
            (B, K, 1, H, W).
        """
        log_prob = self.likelihood.log_prob(image.unsqueeze(1), params)
        if self.smoothing > 0:
            log_prob = torch.logaddexp(log_prob, log_prob.new_tensor(math.log(self.smoothing)))
        log_responsibilities = log_prob.log_softmax(1)
        if not self.differentiate_responsibilities:
            log_responsibilities = log_responsibilities.detach()
        return log_responsibilities

    def log_likelihood(self, image: Tensor, params: Tensor) -> Tensor:
        """log P(x | theta) = sum_n log sum_k pi_k P(x_n | mu_kn), pi = 1/K (equation 1), in nats.

        (B, C, H, W), (B, K, C, H, W) -> (B,). EM climbs this. Smoothing does not enter.
        """
        log_prob = self.likelihood.log_prob(image.unsqueeze(1), params) - math.log(params.shape[1])
        return log_prob.logsumexp(1).sum((1, 2, 3))


def first_responsibilities(image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Tensor:
    """gamma = |N(0, 1)| normalised over K: for images (B, C, H, W), (B, K, 1, H, W)."""
    batch, _, height, width = image.shape
    gamma = torch.randn(
        batch, num_components, 1, height, width, dtype=image.dtype, device=image.device, generator=generator
    )
    gamma.abs_().clamp_min_(torch.finfo(image.dtype).tiny)
    return gamma.div_(gamma.sum(1, keepdim=True))
