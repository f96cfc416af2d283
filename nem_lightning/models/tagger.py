"""Tagger: iterative amortised grouping by a network that sees what the groups explain so far.

Shapes: B images, K groups (the components), T iterations (the steps), C channels, H by W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nem_lightning.errors import InputError, require, require_count, require_number
from nem_lightning.models import starts
from nem_lightning.models.corruption import BitFlip
from nem_lightning.models.grouping import Grouping, GroupingModel, TrainingLoss
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.tagger_networks import NORMS, Dense, Ladder

MAPPINGS = {"ladder": Ladder, "dense": Dense}


@dataclass(frozen=True, kw_only=True)
class Tagging(Grouping):
    """The state of Tagger after an iteration: m, the responsibilities, and z, the means."""

    mean: Tensor  # pyright: ignore[reportGeneralTypeIssues]  # not None here
    """z, (B, K, C, H, W)."""
    logits: Tensor
    """The value of z before the sigmoid, (B, K, C, H, W)."""


class Tagger(GroupingModel):
    """Group the pixels of binary images by a network that improves K groups, iteration by iteration.

    Group k has a mask m_k, which sums to 1 over K at each pixel, and expects the clean image z_k. The image that
    Tagger sees, y, is x with each pixel flipped with probability n while training, and x itself otherwise. So group k
    expects p_k = z_k (1 - 2n) + n of y, and all groups expect xi = sum_k m_k p_k. Each iteration gives the network

        the logits of z_k,      m_k,
        dz_k = m_k (1 - 2n) / (xi - 1 + y), the gradient of log P(y | xi) with respect to z_k, and
        L_k, proportional to P(y | p_k) and normalised over K,

    and the network gives the new logits of z_k, and new m_k by a softmax over K. It shares its weights over groups and
    iterations. Training minimises the cross-entropy of x under sum_k m_k z_k, mean over iterations.

    Args:
        image_shape: (C, H, W).
        mapping: the network: "ladder", as published, or "dense", a cheaper one.
        hidden_sizes: units of each of its layers; (2000, 1000, 500) as published.
        norm: "layer" or "batch"; both are published, and layer normalisation groups far better.
        flip_prob: n, the probability that a pixel is flipped in training, at most 0.49.
        initial_mean: z before the first iteration, from 0.001 to 0.999. (The first m is a softmax of N(0, 1) over K.)
        training_steps: T while training.
        num_components: K.
        num_steps: T otherwise.
        num_starts: how many times Tagger starts in tests and pictures; 1 as published. For each image, the start with
            the lowest :func:`~nem_lightning.models.starts.energy` after the last iteration is kept.

    Raises:
        InputError: a number out of its range, or an unknown mapping or norm.

    Source: Greff et al. 2016, Tagger: Deep Unsupervised Perceptual Grouping, sections 2 and 3.1 and the supplement.
    """

    stills_only = True

    def __init__(
        self,
        image_shape: Sequence[int],
        mapping: str = "ladder",
        hidden_sizes: Sequence[int] = (2000, 1000, 500),
        norm: str = "layer",
        flip_prob: float = 0.2,
        initial_mean: float = 0.26,
        training_steps: int = 3,
        num_components: int = 4,
        num_steps: int = 5,
        num_starts: int = 1,
    ) -> None:
        super().__init__(image_shape, True, num_components, num_steps, num_starts)
        require_count("training_steps", training_steps)
        require_number("flip_prob", flip_prob, minimum=0, maximum=0.49)
        require_number("initial_mean", initial_mean, minimum=0.001, maximum=0.999)
        require(len(hidden_sizes) > 0, "hidden_sizes=[]: must have one number for each layer")
        for size in hidden_sizes:
            require_count("hidden_sizes", size)
        if mapping not in MAPPINGS:
            raise InputError(f"mapping={mapping!r}: must be one of {', '.join(MAPPINGS)}")
        if norm not in NORMS:
            raise InputError(f"norm={norm!r}: must be one of {', '.join(NORMS)}")
        self.flip_prob = flip_prob
        self.initial_logit = math.log(initial_mean / (1 - initial_mean))
        self.training_steps = training_steps
        self.likelihood = Bernoulli()
        channels, height, width = self.image_shape
        pixels, values = height * width, channels * height * width
        self.mapping = MAPPINGS[mapping](2 * values + 2 * pixels, hidden_sizes, norm, training_steps)
        self.to_logits = nn.Linear(self.mapping.units, values)
        self.to_mask = nn.Linear(self.mapping.units, pixels)

    def start(self, image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Tagging:
        """Give the state before the first iteration: m is random, z is the same everywhere.

        ``image`` is (B, C, H, W).
        """
        batch, channels, height, width = image.shape
        noise = torch.randn(
            batch, num_components, 1, height, width, dtype=image.dtype, device=image.device, generator=generator
        )
        logits = image.new_full((batch, num_components, channels, height, width), self.initial_logit)
        return Tagging(responsibilities=noise.softmax(1), mean=logits.sigmoid(), logits=logits)

    def steps(self, state: Tagging, noisy: Tensor, num_steps: int) -> Iterator[Tagging]:
        """Take T iterations from a state. ``noisy`` is y, (B, C, H, W)."""
        for iteration in range(num_steps):
            state = self.step(state, noisy, iteration)
            yield state

    def step(self, state: Tagging, noisy: Tensor, iteration: int) -> Tagging:
        """Take one iteration.

        Args:
            state: m and z.
            noisy: y, (B, C, H, W).
            iteration: which one, from 0; batch normalisation has statistics for each.
        """
        inputs = torch.cat([part.flatten(2) for part in self.inputs(state, noisy)], 2)  # (B, K, (2C + 2) HW)
        hidden = self.mapping(inputs.flatten(0, 1), iteration).unflatten(0, inputs.shape[:2])
        logits = self.to_logits(hidden).unflatten(2, self.image_shape)
        mask = self.to_mask(hidden).softmax(1).unflatten(2, (1, *self.image_shape[1:]))
        return Tagging(responsibilities=mask, mean=logits.sigmoid(), logits=logits)

    def inputs(self, state: Tagging, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give what the network sees: the logits of z and dz, (B, K, C, H, W), and m and L, (B, K, 1, H, W)."""
        y, mask, n = noisy.unsqueeze(1), state.responsibilities, self.flip_prob
        expected = state.mean * (1 - 2 * n) + n  # p
        xi = (mask * expected).sum(1, keepdim=True)
        gradient = mask * (1 - 2 * n) / _away_from_zero(xi - 1 + y, y)
        probability = (y * expected + (1 - y) * (1 - expected)).prod(2, keepdim=True)
        return state.logits, gradient, mask, probability / probability.sum(1, keepdim=True).clamp_min(1e-30)

    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Tagging]:
        """Yield the states after iterations 1 to T on the clean image, for each image from its best start."""
        image = frames[:, 0]
        return starts.steps_from_best(
            lambda: self.start(image, num_components, generator),
            lambda start: self.steps(start, image, num_steps),
            lambda end: starts.energy(self.likelihood, image, end.logits, end.responsibilities),
            num_starts,
        )

    def training_loss(
        self, frames: Tensor, *, epoch: int = 0, generator: torch.Generator | None = None
    ) -> TrainingLoss:
        """Give the cross-entropy of the clean image, in nats an image, mean over iterations. One draw of noise."""
        self.check_frames(frames, self.num_steps)
        image = frames[:, 0]
        noisy = BitFlip(self.flip_prob)(image, generator)
        states = list(self.steps(self.start(image, self.num_components, generator), noisy, self.training_steps))
        costs = torch.stack([self.cost(image, state) for state in states])
        return TrainingLoss(costs.mean(), lambda: states[-1])

    def cost(self, image: Tensor, state: Tagging) -> Tensor:
        """Give the cross-entropy of x, (B, C, H, W), under sum_k m_k z_k, in nats an image, mean over the batch."""
        with torch.autocast(image.device.type, enabled=False):  # in half precision, 1 - 1e-6 is 1
            expected = (state.responsibilities.to(image.dtype) * state.mean.to(image.dtype)).sum(1)
            expected = expected.clamp(1e-6, 1 - 1e-6)  # rounding may leave [0, 1]
            return F.binary_cross_entropy(expected, image, reduction="sum") / len(image)


def _away_from_zero(values: Tensor, y: Tensor) -> Tensor:
    """Keep values, positive if y is 1 and negative if y is 0, away from 0, where rounding errors may bring them."""
    return (2 * y - 1) * values.abs().clamp_min(1e-6)
