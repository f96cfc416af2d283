"""Whether EM increases the log likelihood and Q, step by step."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nem_lightning.datamodules.base import TensorFrames
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.m_steps import GradientMStep
from nem_lightning.training.module import GroupingModule
from reproduce.scoring import batches

STEPS = 20
SMALL_STEP_SIZES = (0.1, 0.01)
"""Step sizes eta with which N-EM is a true generalised EM: so small that no gradient step overshoots."""


def q(em: NeuralEM, image: Tensor, responsibilities: Tensor, params: Tensor) -> Tensor:
    """Give Q, the expected complete-data log likelihood: sum_nk gamma_nk log P(x_n | mu_kn), in nats.

    The M-step should increase Q; gamma is from the step before. The constant log pi is left out.

    (B, C, H, W), (B, K, 1, H, W), (B, K, C, H, W) -> (B,).
    """
    return (responsibilities * em.likelihood.log_prob(image.unsqueeze(1), params)).sum((1, 2, 3, 4))


@torch.no_grad()
def follow(
    em: NeuralEM, frames: Tensor, num_steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Give the log likelihood after each step, and Q. Q takes gamma of the step before, and mu of this step.

    Args:
        em: the model; EM starts once.
        frames: (B, 1, C, H, W).
        num_steps: T.
        generator: draws the first responsibilities.

    Returns:
        Both (T, B), nats per image.
    """
    image = frames[:, 0]
    start = em.start(image, em.num_components, generator)
    iterates = [start, *em.steps(start, frames, frames, num_steps)]
    likelihoods = [em.log_likelihood(image, iterate.params) for iterate in iterates[1:]]
    expectations = [q(em, image, before.responsibilities, after.params) for before, after in pairwise(iterates)]
    return torch.stack(likelihoods), torch.stack(expectations)


def fell(log_likelihood: Tensor) -> Tensor:
    """Say after which steps the log likelihood fell, by more than rounding: (T, B) -> (T - 1, B) boolean."""
    slack = 1e-9 * log_likelihood[:-1].abs()
    return log_likelihood.diff(dim=0) < -slack


def with_small_steps(em: NeuralEM, step_size: float) -> NeuralEM:
    """Give the same N-EM with another eta, and an exact E-step (no smoothing)."""
    em = copy.deepcopy(em)
    assert isinstance(em.m_step, GradientMStep)
    nn.init.constant_(em.m_step.step_size, step_size)
    em.smoothing = 0.0
    return em


def curves(module: GroupingModule, data: TensorFrames) -> list[dict[str, Any]]:
    """Give means over images of the results of :func:`follow`, in float64; for N-EM also with small step sizes.

    There is an entry for each variant and step: ``log_likelihood``, ``q``, and ``fell``, the share of images whose log
    likelihood fell (None for the first step). ``step_size`` is None for RNN-EM, and the mean over
    units if each has one of its own.
    """
    em = copy.deepcopy(module.model).double().eval()
    assert isinstance(em, NeuralEM)
    variants: list[tuple[str, float | None, NeuralEM]] = [("as trained", None, em)]
    if isinstance(em.m_step, GradientMStep):
        variants[0] = ("as trained", em.m_step.step_size.mean().item(), em)
        variants += [(f"step size {eta:g}", eta, with_small_steps(em, eta)) for eta in SMALL_STEP_SIZES]
    found = []
    for variant, eta, em in variants:
        parts = [
            follow(em, batch["frames"].double(), STEPS, module.generator("test", index))
            for index, batch in enumerate(batches(data))
        ]
        log_likelihood, expectation = (torch.cat(of, 1) for of in zip(*parts, strict=True))
        falls = [None, *fell(log_likelihood).double().mean(1).tolist()]
        means = zip(log_likelihood.mean(1).tolist(), expectation.mean(1).tolist(), falls, strict=True)
        for step, (likelihood, expected, share) in enumerate(means, start=1):
            head = {"variant": variant, "step_size": eta, "step": step, "images": len(data)}
            found.append({**head, "log_likelihood": likelihood, "q": expected, "fell": share})
    return found
