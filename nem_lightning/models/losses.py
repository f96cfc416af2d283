"""The training loss: equation 5, and the weights of the steps."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nem_lightning.errors import require, require_number
from nem_lightning.models.grouping import frame_pair
from nem_lightning.models.likelihoods import Likelihood

if TYPE_CHECKING:
    from nem_lightning.models.em import Iterate


_WEIGHTS: dict[str, Callable[[int, int], float]] = {
    "last": lambda step, num_steps: float(step == num_steps),
    "all": lambda step, num_steps: 1.0,
    "rising": lambda step, num_steps: float(step),
}
"""The weight of a step, from 1 to T, before they are divided by their sum."""


class StepLoss(NamedTuple):
    """The loss of one step, in nats, summed over pixels and components, mean over the batch."""

    total: Tensor
    intra: Tensor
    inter: Tensor


class NeuralEMLoss:
    """Equation 5, minimised:

        sum_nk  gamma_nk (-log P(x_n | mu_nk))  +  lambda (1 - gamma_nk) KL(prior || P(. | mu_nk)).

    The first term, *intra*, makes each component explain its own pixels. The second, *inter*, keeps the
    component at the prior for all other pixels.

    Args:
        likelihood: P(x | mu) of the loss, from :mod:`nem_lightning.models.likelihoods`. For Gaussian pixels
            the published sigma is 1.0 in the loss and 0.25 in the E-step.
        prior: the prior's mean; 0 is black.
        prior_weight: lambda, at least 0.
        step_weights: which steps count: "last" (the published loss), "all" (their mean), "rising" (all, step t with
            a weight proportional to t), or T weights, each at least 0 and not all of them 0.

    Raises:
        InputError: a negative weight, an unknown word, or a prior that the likelihood cannot have.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        prior: float = 0.0,
        prior_weight: float = 1.0,
        step_weights: str | Sequence[float] = "last",
    ) -> None:
        require_number("prior_weight", prior_weight, minimum=0)
        if likelihood.binary:
            require_number("prior", prior, minimum=0, maximum=1)
        else:
            require_number("prior", prior)
        if isinstance(step_weights, str) or not isinstance(step_weights, Sequence):
            allowed = ", ".join(map(repr, _WEIGHTS))
            is_known = isinstance(step_weights, str) and step_weights in _WEIGHTS
            require(is_known, f"step_weights={step_weights!r}: must be {allowed} or a list of numbers")
        else:
            for weight in step_weights:
                require_number("step_weights", weight, minimum=0)
            step_weights = [float(weight) for weight in step_weights]
            require(any(step_weights), f"step_weights={step_weights}: one must be greater than 0")
        self.likelihood = likelihood
        self.prior = prior
        self.prior_weight = prior_weight
        self.step_weights = step_weights

    def weights(self, num_steps: int) -> list[float]:
        """Give the weight of each of T steps.

        Raises:
            InputError: ``step_weights`` is a list whose length is not T.
        """
        if isinstance(self.step_weights, str):
            weights = [_WEIGHTS[self.step_weights](t, num_steps) for t in range(1, num_steps + 1)]
            return [weight / sum(weights) for weight in weights]
        require(
            len(self.step_weights) == num_steps,
            f"step_weights: has {len(self.step_weights)} weights, must have one for each of the {num_steps} steps",
        )
        return self.step_weights

    def of_step(self, target: Tensor, iterate: "Iterate") -> StepLoss:
        """Give equation 5 for the iterate after one step. ``target`` is the clean frame, (B, C, H, W)."""
        gamma = iterate.responsibilities  # (B, K, 1, H, W)
        log_prob = self.likelihood.log_prob(target.unsqueeze(1), iterate.params)
        kl = self.likelihood.kl_from_prior(self.prior, iterate.params)
        intra = -(gamma * log_prob).sum() / len(target)
        inter = ((1 - gamma) * kl).sum() / len(target)
        return StepLoss(intra + self.prior_weight * inter, intra, inter)

    def __call__(self, frames: Tensor, trajectory: Sequence["Iterate"]) -> Tensor:
        """Give the loss to minimise. The loss of steps with weight 0 is not computed.

        Args:
            frames: the clean frames, (B, F, C, H, W).
            trajectory: the iterates after steps 1 to T.
        """
        weights = self.weights(len(trajectory))
        counted = [
            weight * self.of_step(frame_pair(frames, t)[1], iterate).total
            for t, (weight, iterate) in enumerate(zip(weights, trajectory, strict=True), start=1)
            if weight > 0
        ]
        return torch.stack(counted).sum()
