"""Expectation maximisation with a neural M-step: the loop of the paper.

Shapes: B images, F frames, K components, T steps, C channels, H by W pixels, D state size.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nem_lightning.errors import InputError, require, require_count, require_flag, require_number
from nem_lightning.headings import Heading
from nem_lightning.models.corruption import BitFlip
from nem_lightning.models.fast_path import FastPath
from nem_lightning.models.grouping import Grouping, GroupingModel, TrainingLoss, frame_pair
from nem_lightning.models.likelihoods import Likelihood
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import MStep
from nem_lightning.models.num_components import unroll_choosing
from nem_lightning.models.starts import STARTS, best_start, energy

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Iterate(Grouping):
    """The state of EM after a step."""

    mean: Tensor  # pyright: ignore[reportGeneralTypeIssues]  # not None here
    """mu, (B, K, C, H, W)."""
    state: Tensor
    """theta, (B, K, D)."""
    params: Tensor
    """The decoder's output, (B, K, C, H, W): logits for Bernoulli, means for Gaussian pixels."""


class NeuralEM(GroupingModel):
    """Neural EM: alternate an E-step with a learned M-step. The K components share the weights.

    Bernoulli pixels must be 0 or 1. To change the loop in a subclass, override :meth:`step`, :meth:`e_step` or
    :meth:`steps`: training and scoring use them.

    Args:
        m_step: :class:`~nem_lightning.models.m_steps.GradientMStep` (N-EM),
            :class:`~nem_lightning.models.m_steps.RecurrentMStep` (RNN-EM), or an M-step of your own.
        likelihood: P(x | mu) of the E-step.
        loss: equation 5; by default with the likelihood of the E-step, as published.
        corruption: noise on the M-step's input in training, from :mod:`nem_lightning.models.corruption`; none by
            default.
        noise_by_step: whether each step sees a still image with new noise, as in the authors' code, or all steps see
            the same noise. The frames of a sequence always have noise of their own.
        num_components: K, at least 1.
        num_steps: T, at least 1.
        iterations_per_step: how many iterations of M-step and E-step a step has, at least 1. All of them see the same
            frame and explain the same frame, and the loss of a step is their mean. Several help on sequences. On
            stills, more steps do the same.
        num_starts: how many times EM starts in tests and pictures, at least 1. For each image, the start with the
            lowest :func:`~nem_lightning.models.starts.energy` after the last step is kept.
        dark_weight: how often a dark pixel of a binary image counts in this energy, at least 0; once by default.
        init: the first gamma, from :mod:`nem_lightning.models.starts`: "noise", as published, "bright_regions" or
            "distant_values".
        smoothing: added to each component's probability of a pixel before normalising, at least 0;
            the published code uses 1e-6.
        initial_mean: mu before the first step.
        differentiate_responsibilities: whether gradients flow through gamma, in the loop and in the loss.
        detached_epochs: number of first epochs in which no gradients flow through gamma, at least 0.
        fast: whether training uses the :mod:`~nem_lightning.models.fast_path`: "auto" uses it if it applies, and
            otherwise logs the reason once; true raises an error with the reason; false always uses the loop.

    Raises:
        InputError: a setting of the wrong type, out of its range or unknown; likelihoods of the E-step and the loss
            that differ; or step weights of the loss that do not fit T.

    Source: Greff et al. 2017, section 2.
    """

    headings: ClassVar[Mapping[str, Heading]] = {
        "loss": Heading("loss (nats)", ".5g"),
        "loss_intra": Heading("", ".5g"),
        "loss_inter": Heading("", ".5g"),
        "log_likelihood": Heading("log likelihood (nats)", ".5g"),
        "upper_bound": Heading("upper bound (nats)", ".5g"),
    }

    def __init__(
        self,
        m_step: MStep,
        likelihood: Likelihood,
        loss: NeuralEMLoss | None = None,
        corruption: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
        *,
        num_components: int = 3,
        num_steps: int = 10,
        iterations_per_step: int = 1,
        num_starts: int = 1,
        dark_weight: float | None = None,
        init: str = "noise",
        smoothing: float = 1e-6,
        initial_mean: float = 0.0,
        differentiate_responsibilities: bool = True,
        detached_epochs: int = 0,
        noise_by_step: bool = False,
        fast: str | bool = "auto",
    ) -> None:
        super().__init__(m_step.image_shape, likelihood.binary, num_components, num_steps, num_starts)
        if init not in STARTS:
            raise InputError(f"init={init!r}: must be one of {', '.join(STARTS)}")
        dark_weight = 1.0 if dark_weight is None else dark_weight
        require_count("iterations_per_step", iterations_per_step)
        require_number("dark_weight", dark_weight, minimum=0)
        require_number("smoothing", smoothing, minimum=0)
        require_number("initial_mean", initial_mean)
        require_flag("differentiate_responsibilities", differentiate_responsibilities)
        require_count("detached_epochs", detached_epochs, minimum=0)
        require_flag("noise_by_step", noise_by_step)
        require(fast == "auto" or isinstance(fast, bool), f"fast={fast}: must be auto, true or false")
        loss = NeuralEMLoss(likelihood) if loss is None else loss
        own, of_loss = type(likelihood).__name__, type(loss.likelihood).__name__
        require(own == of_loss, f"loss.likelihood: is {of_loss}, but likelihood {own}; must be the same")
        try:
            loss.weights(num_steps)
        except InputError as error:
            raise InputError(f"loss.{error}") from None
        self.m_step = m_step
        self.likelihood = likelihood
        self.loss = loss
        self.corruption = corruption
        self.iterations_per_step = iterations_per_step
        self.dark_weight = dark_weight
        self.init = init
        self.smoothing = smoothing
        self.initial_mean = initial_mean
        self.differentiate_responsibilities = differentiate_responsibilities
        self.detached_epochs = detached_epochs
        self.noise_by_step = noise_by_step
        self.fast = fast
        self.fast_path = FastPath()

    # The loop

    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Iterate]:
        """Yield the iterates after steps 1 to T, for each image from its best start."""
        best = self.best_start(frames, num_components, num_steps, num_starts, generator)
        yield from self._after_each_step(self.steps(best, frames, frames, num_steps))

    def unroll_choosing(
        self, frames: Tensor, most: int, num_steps: int, num_starts: int, generator: torch.Generator | None
    ) -> Iterator[Iterate]:
        """Choose K for each image: :func:`~nem_lightning.models.num_components.unroll_choosing`."""
        return self._after_each_step(unroll_choosing(self, frames, most, num_steps, num_starts, generator))

    def _after_each_step(self, iterates: Iterator[Iterate]) -> Iterator[Iterate]:
        """Leave out the iterates inside a step."""
        return itertools.islice(iterates, self.iterations_per_step - 1, None, self.iterations_per_step)

    def best_start(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterate:
        """Give for each image the start with the lowest energy after T steps."""
        first, last = frames[:, 0], frame_pair(frames, num_steps)[1]
        return best_start(
            lambda: self.start(first, num_components, generator),
            lambda start: self.steps(start, frames, frames, num_steps),
            lambda end: self.energy(last, end),
            num_starts,
        )

    def steps(
        self, iterate: Iterate, corrupted: Tensor, frames: Tensor, num_steps: int, *, detach: bool | None = None
    ) -> Iterator[Iterate]:
        """Take T steps of EM from an iterate, and yield the iterate after each iteration.

        ``corrupted`` and ``frames`` are (B, F, C, H, W).
        """
        for t in range(1, num_steps + 1):
            for _ in range(self.iterations_per_step):
                iterate = self.step(iterate, frame_pair(corrupted, t)[0], frame_pair(frames, t)[1], detach=detach)
                yield iterate

    def start(self, image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Iterate:
        """Give the iterate before the first step: theta = 0, mu = initial_mean (also as ``params``), the first gamma.

        ``image`` is the first frame, (B, C, H, W).
        """
        return self.blank(image, self.first_responsibilities(image, num_components, generator))

    def blank(self, image: Tensor, gamma: Tensor) -> Iterate:
        """Give the iterate before the first step for a first gamma, (B, K, 1, H, W)."""
        state = image.new_zeros(*gamma.shape[:2], self.m_step.state_size)
        mean = image.new_full((*gamma.shape[:2], *image.shape[1:]), self.initial_mean)
        return Iterate(state=state, params=mean, mean=mean, responsibilities=gamma)

    def first_responsibilities(
        self, image: Tensor, num_components: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the first gamma: (B, C, H, W) -> (B, K, 1, H, W)."""
        return STARTS[self.init](image, num_components, generator)

    def step(self, iterate: Iterate, corrupted: Tensor, target: Tensor, *, detach: bool | None = None) -> Iterate:
        """Take one iteration of EM: the M-step, then the E-step.

        Args:
            iterate: the state of EM.
            corrupted: (B, C, H, W), the frame that the M-step sees.
            target: (B, C, H, W), the frame that the E-step explains: the clean image of a still, the next frame of a
                sequence.
            detach: whether gradients stop at gamma; by default as ``differentiate_responsibilities`` says.
        """
        residual = iterate.responsibilities * (corrupted.unsqueeze(1) - iterate.mean)  # (B, K, C, H, W)
        return self.explain(target, *self.m_step(residual, iterate.state), detach=detach)

    def explain(self, target: Tensor, state: Tensor, params: Tensor, *, detach: bool | None = None) -> Iterate:
        """Complete a step from the M-step's output: compute mu, and gamma by the E-step."""
        detach = not self.differentiate_responsibilities if detach is None else detach
        gamma = self.e_step(target, params.detach() if detach else params)
        return Iterate(state=state, params=params, mean=self.likelihood.mean(params), responsibilities=gamma)

    def e_step(self, target: Tensor, params: Tensor) -> Tensor:
        """Give gamma: gamma_k is proportional to P(x | mu_k) + smoothing, and pi is uniform (equation 3).

        Args:
            target: (B, C, H, W).
            params: (B, K, C, H, W).

        Returns:
            (B, K, 1, H, W).
        """
        if self.smoothing == 0:  # all probabilities may underflow, so use logarithms
            return self.likelihood.log_prob(target.unsqueeze(1), params).softmax(1)
        prob = self.likelihood.prob(target.unsqueeze(1), params) + self.smoothing
        return prob / prob.sum(1, keepdim=True)

    # Evaluation

    def energy(self, target: Tensor, iterate: Iterate) -> Tensor:
        """Give :func:`~nem_lightning.models.starts.energy` of an iterate, (B,); infinite instead of NaN."""
        found = energy(self.likelihood, target, iterate.params, iterate.responsibilities, self.dark_weight)
        return found.where(~found.isnan(), torch.inf)

    def log_likelihood(self, target: Tensor, params: Tensor, used: Tensor | None = None) -> Tensor:
        """Give log P(x | theta) = sum_n log sum_k pi_k P(x_n | mu_kn), pi = 1/K (equation 1), in nats.

        (B, C, H, W), (B, K, C, H, W) -> (B,). Exact EM never decreases this value; smoothing is ignored. ``used``,
        (B, K) boolean, says which components count if K is chosen for each image.
        """
        log_prob = self._log_prob(target, params, used)
        count = params.shape[1] if used is None else used.sum(1).view(-1, 1, 1, 1)
        return (log_prob.logsumexp(1) - torch.as_tensor(count).to(params).log()).sum((1, 2, 3))

    def _log_prob(self, target: Tensor, params: Tensor, used: Tensor | None) -> Tensor:
        """Give log P(x | mu), (B, K, 1, H, W), minus infinity for components that are not used."""
        log_prob = self.likelihood.log_prob(target.unsqueeze(1), params)
        return log_prob if used is None else log_prob.masked_fill(~used[:, :, None, None, None], -math.inf)

    def report(self, target: Tensor, grouping: Grouping) -> dict[str, Tensor]:
        """Give equation 5 of this step with its two terms, the log likelihood and the upper bound.

        All are in nats, means over the batch. The upper bound is the cross-entropy of the best component at each pixel,
        - sum_n max_k log P(x_n | mu_kn): what the components could explain if the grouping were perfect.
        """
        if not isinstance(grouping, Iterate):
            raise TypeError(f"{type(grouping).__name__}: NeuralEM reports on its own iterates")
        loss = self.loss.of_step(target, grouping)
        used = None if self.choose_up_to is None else grouping.responsibilities.flatten(2).amax(2) > 0
        return {
            "loss": loss.total,
            "loss_intra": loss.intra,
            "loss_inter": loss.inter,
            "log_likelihood": self.log_likelihood(target, grouping.params, used).mean(),
            "upper_bound": -self._log_prob(target, grouping.params, used).amax(1).sum() / len(target),
        }

    # Training

    def prepare_training(self, compiled: bool = False) -> None:
        """Make the fast path check the model again, and compile the M-step if ``compiled`` is true."""
        if compiled:
            self.m_step.compile()
        self.fast_path.begin()

    def finish_training(self) -> None:
        """Make the fast path check the model at each batch."""
        self.fast_path.end()

    def training_loss(
        self, frames: Tensor, *, epoch: int = 0, generator: torch.Generator | None = None
    ) -> TrainingLoss:
        """Unroll T steps from one start on corrupted frames, and give equation 5, the mean over iterations.

        Raises:
            InputError: frames that do not fit, or ``fast`` is true and the fast path does not apply.
        """
        self.check_frames(frames, self.num_steps)
        corrupted = self.corrupt(frames, generator)
        detach = epoch < self.detached_epochs or not self.differentiate_responsibilities
        target = frame_pair(frames, self.num_steps)[1]
        if self.fast is not False and self._is_fast(frames, corrupted, epoch):
            found = self.fast_path(self, frames[:, 0], corrupted, detach=detach, generator=generator)
            return TrainingLoss(found.total, lambda: self.explain(target, found.state, found.params, detach=True))
        start = self.start(frames[:, 0], self.num_components, generator)
        trajectory = list(self.steps(start, corrupted, frames, self.num_steps, detach=detach))
        every = self.iterations_per_step
        by_iteration = [self.loss(frames, trajectory[first::every]) for first in range(every)]
        return TrainingLoss(torch.stack(by_iteration).mean(), lambda: trajectory[-1])

    def corrupt(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add noise to frames (B, F, C, H, W). If noise is drawn by step, a still becomes T + 1 frames."""
        if self.corruption is None:
            return frames
        if self.noise_by_step and frames.shape[1] == 1:
            frames = frames.expand(-1, self.num_steps + 1, -1, -1, -1)
        return self.corruption(frames, generator)

    def _is_fast(self, frames: Tensor, corrupted: Tensor, epoch: int) -> bool:
        is_own = type(self) is NeuralEM
        reason = (
            self.fast_path.why_not(self, frames, corrupted, epoch) if is_own else "the model is a subclass of NeuralEM"
        )
        if reason is not None:
            require(self.fast == "auto", f"fast=true: the fast path does not apply, because {reason}")
            if self.fast_path.is_news(reason):
                log.info("training takes the loop, not the fast path, because %s", reason)
        return reason is None

    def check_images(self, image_shape: Sequence[int], binary: bool) -> None:
        """Raise :class:`~nem_lightning.errors.InputError` if the model or its noise cannot take these images."""
        super().check_images(image_shape, binary)
        require(
            binary or not isinstance(self.corruption, BitFlip),
            "model.corruption: bit flips are for pixels of 0 and 1, but data has real values in [0, 1]; use "
            "MaskedUniform",
        )
        pixel = torch.zeros(1, 1, image_shape[0], 1, 1)
        highest = math.inf if self.binary else self.likelihood.prob(pixel, pixel).item()
        require(
            self.smoothing == 0 or self.smoothing < highest / 100,
            f"model.smoothing={self.smoothing:g}: swamps the likelihood, whose density is at most {highest:.2g} with "
            f"{image_shape[0]} channels, so every component would get the same share; must be far smaller, such as 0",
        )
