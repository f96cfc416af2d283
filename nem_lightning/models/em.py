"""Expectation maximisation with a neural M-step: the loop of the paper.

Shapes: B images, K components, C channels, H by W pixels, D state size.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nem_lightning.errors import InputError, require, require_count, require_flag, require_number
from nem_lightning.models.starts import STARTS, energy


class Iterate(NamedTuple):
    """Where EM stands after a step."""

    state: Tensor
    """theta, (B, K, D)."""
    params: Tensor
    """What the decoder gives, (B, K, C, H, W): logits for Bernoulli, means for Gaussian pixels."""
    mean: Tensor
    """mu, (B, K, C, H, W)."""
    responsibilities: Tensor
    """gamma, (B, K, 1, H, W); sums to 1 over K."""

    @property
    def labels(self) -> Tensor:
        """The component that each pixel belongs to most, (B, H, W), integers 0 to K-1."""
        return self.responsibilities.squeeze(2).argmax(1)

    def where(self, mask: Tensor, other: "Iterate") -> "Iterate":
        """This one for the images where ``mask``, (B,) boolean, is True, the other one elsewhere."""
        pairs = zip(self, other, strict=True)
        return Iterate(*(torch.where(mask.view(-1, *[1] * (one.dim() - 1)), one, two) for one, two in pairs))


class NeuralEM(nn.Module):
    """Neural EM: alternate an E-step with a learned M-step, the K components sharing its weights.

    Bernoulli pixels must be 0 or 1. To change the loop in a subclass, override :meth:`step`, :meth:`e_step` or
    :meth:`iterates`: validation keeps the last iterate alone, without :meth:`forward`.

    Args:
        m_step: :class:`~nem_lightning.models.m_steps.GradientMStep` (N-EM),
            :class:`~nem_lightning.models.m_steps.RecurrentMStep` (RNN-EM), or a module called like them.
        likelihood: P(x | mu) of the E-step, from :mod:`nem_lightning.models.likelihoods`, or one with the same methods.
        smoothing: added to each component's probability of a pixel before normalising, at least 0;
            the published code uses 1e-6.
        initial_mean: mu before the first step.
        differentiate_responsibilities: whether gradients flow through gamma, in the loop and in the loss.
        first: what the first gamma is, from :mod:`nem_lightning.models.starts`: "noise", as published, or "seeds".

    Raises:
        InputError: smoothing below 0, an unknown first gamma, or a setting of another kind.

    Source: Greff et al. 2017, section 2.
    """

    def __init__(
        self,
        m_step: nn.Module,
        likelihood,
        smoothing: float = 1e-6,
        initial_mean: float = 0.0,
        differentiate_responsibilities: bool = True,
        first: str = "noise",
    ) -> None:
        super().__init__()
        if first not in STARTS:
            raise InputError(f"first={first!r}: must be one of {', '.join(STARTS)}")
        require_number("smoothing", smoothing, minimum=0)
        require_number("initial_mean", initial_mean)
        require_flag("differentiate_responsibilities", differentiate_responsibilities)
        self.m_step = m_step
        self.likelihood = likelihood
        self.smoothing = smoothing
        self.initial_mean = initial_mean
        self.differentiate_responsibilities = differentiate_responsibilities
        self.first = first

    def forward(self, *arguments, **named) -> list[Iterate]:
        """The trajectory: all that :meth:`iterates`, which has the same arguments, gives."""
        return list(self.iterates(*arguments, **named))

    def iterates(
        self,
        image: Tensor,
        corrupted: Tensor | None = None,
        *,
        num_components: int = 3,
        num_steps: int = 10,
        num_starts: int = 1,
        generator: torch.Generator | None = None,
    ) -> Iterator[Iterate]:
        """Unroll EM on a batch of images. Who keeps only the last iterate spares the memory of the others.

        Args:
            image: (B, C, H, W), what the E-step explains.
            corrupted: (B, C, H, W), what the M-step sees; ``image`` by default.
            num_components: K, at least 1.
            num_steps: T, at least 1.
            num_starts: from how many first responsibilities, at least 1; more than 1 for Bernoulli pixels only.
            generator: draws the first responsibilities.

        Returns:
            The iterates after steps 1 to T, one by one. Of several starts, for each image the one
            whose last step has the lowest :func:`~nem_lightning.models.starts.energy`.

        Raises:
            InputError: K, T or the number of starts below 1, several starts with Gaussian pixels, or an image shape
                other than the M-step's.
        """
        require_count("num_components", num_components)
        require_count("num_steps", num_steps)
        self.require_starts(num_starts)
        shape = tuple(image.shape[1:])
        require(
            shape == tuple(self.m_step.image_shape),
            f"image shape {shape}: this model takes {tuple(self.m_step.image_shape)} (channels, height, width)",
        )
        corrupted = image if corrupted is None else corrupted

        def unroll(iterate: Iterate) -> Iterator[Iterate]:
            for _ in range(num_steps):
                iterate = self.step(iterate, corrupted, image)
                yield iterate

        @torch.no_grad()
        def energy_at_the_end(start: Iterate) -> Tensor:
            return self.energy(image, deque(unroll(start), maxlen=1).pop())

        best = self.start(image, num_components, generator)
        lowest = energy_at_the_end(best) if num_starts > 1 else None
        for _ in range(num_starts - 1):
            other = self.start(image, num_components, generator)
            found = energy_at_the_end(other)
            best, lowest = other.where(found < lowest, best), torch.minimum(found, lowest)
        return unroll(best)

    def require_starts(self, num_starts: int) -> None:
        """Raise :class:`~nem_lightning.errors.InputError` where EM cannot choose among so many starts."""
        require_count("num_starts", num_starts)
        require(
            num_starts == 1 or self.likelihood.binary,
            f"num_starts={num_starts}: must be 1 unless the pixels are Bernoulli",
        )

    def start(self, image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Iterate:
        """theta = 0, mu = initial_mean, and the first gamma. No ``params`` yet (mu in its place)."""
        state = image.new_zeros(len(image), num_components, self.m_step.state_size)
        mean = image.new_full((len(image), num_components, *image.shape[1:]), self.initial_mean)
        return Iterate(state, mean, mean, self.first_responsibilities(image, num_components, generator))

    def first_responsibilities(
        self, image: Tensor, num_components: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """The first gamma, drawn: (B, C, H, W) -> (B, K, 1, H, W)."""
        return STARTS[self.first](image, num_components, generator)

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
        return self.explain(image, *self.m_step(residual, iterate.state))

    def explain(self, image: Tensor, state: Tensor, params: Tensor) -> Iterate:
        """The rest of a step, from what the M-step gives: mu, and gamma by the E-step."""
        return Iterate(state, params, self.likelihood.mean(params), self.e_step(image, params))

    def e_step(self, image: Tensor, params: Tensor) -> Tensor:
        """gamma, with gamma_k proportional to P(x | mu_k) + smoothing and pi uniform (equation 3).

        Args:
            image: (B, C, H, W).
            params: (B, K, C, H, W).

        Returns:
            (B, K, 1, H, W).
        """
        if not self.differentiate_responsibilities:
            params = params.detach()
        if self.smoothing == 0:  # then all may underflow, so in logarithms
            return self.likelihood.log_prob(image.unsqueeze(1), params).softmax(1)
        prob = self.likelihood.prob(image.unsqueeze(1), params) + self.smoothing
        return prob / prob.sum(1, keepdim=True)

    def energy(self, image: Tensor, iterate: Iterate) -> Tensor:
        """:func:`~nem_lightning.models.starts.energy` of an iterate, (B,); infinite where it is no number, so never lowest."""
        found = energy(image, iterate.params, iterate.responsibilities)
        return found.where(~found.isnan(), torch.inf)

    def log_likelihood(self, image: Tensor, params: Tensor) -> Tensor:
        """log P(x | theta) = sum_n log sum_k pi_k P(x_n | mu_kn), pi = 1/K (equation 1), in nats.

        (B, C, H, W), (B, K, C, H, W) -> (B,). EM climbs this. Smoothing does not enter.
        """
        log_prob = self.likelihood.log_prob(image.unsqueeze(1), params) - math.log(params.shape[1])
        return log_prob.logsumexp(1).sum((1, 2, 3))
