"""Whether EM climbs: the log likelihood and Q, step by step."""

import copy

import torch
from torch import Tensor, nn

from nem_lightning.datamodules.base import TensorImages
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.m_steps import GradientMStep
from nem_lightning.training.module import NeuralEMModule
from reproduce.scoring import batches, device

IMAGES = 1000
STEPS = 20
SMALL_STEP_SIZES = (0.1, 0.01)
"""eta of N-EM with which it is a true generalised EM: so small that no gradient step overshoots."""


def q(em: NeuralEM, image: Tensor, responsibilities: Tensor, params: Tensor) -> Tensor:
    """Q, the expected complete-data log likelihood: sum_nk gamma_nk log P(x_n | mu_kn), in nats.

    What an M-step is to raise; gamma is that of the step before it. The constant log pi is left out.

    (B, C, H, W), (B, K, 1, H, W), (B, K, C, H, W) -> (B,).
    """
    return (responsibilities * em.likelihood.log_prob(image.unsqueeze(1), params)).sum((1, 2, 3, 4))


@torch.no_grad()
def follow(em: NeuralEM, image: Tensor, num_components: int, num_steps: int, generator=None) -> tuple[Tensor, Tensor]:
    """The log likelihood after each step, and Q of its M-step: gamma from before it, mu from after it.

    Args:
        em: the recurrence.
        image: (B, C, H, W).
        num_components: K.
        num_steps: T.
        generator: draws the first responsibilities.

    Returns:
        Both (T, B), nats per image.
    """
    iterate = em.start(image, num_components, generator)
    likelihoods, expectations = [], []
    for _ in range(num_steps):
        before = iterate.responsibilities
        iterate = em.step(iterate, image, image)
        likelihoods.append(em.log_likelihood(image, iterate.params))
        expectations.append(q(em, image, before, iterate.params))
    return torch.stack(likelihoods), torch.stack(expectations)


def fell(log_likelihood: Tensor) -> Tensor:
    """Where the log likelihood is lower than a step before, by more than rounding: (T, B) -> (T - 1, B) boolean."""
    slack = 1e-9 * log_likelihood[:-1].abs()
    return log_likelihood.diff(dim=0) < -slack


def with_small_steps(em: NeuralEM, step_size: float) -> NeuralEM:
    """The same N-EM with another eta, and an exact E-step (no smoothing)."""
    em = copy.deepcopy(em)
    nn.init.constant_(em.m_step.step_size, step_size)
    em.smoothing = 0.0
    return em


def curves(module: NeuralEMModule, images: TensorImages) -> list[dict[str, object]]:
    """Means over images of what :func:`follow` gives, in float64; of N-EM also with small step sizes.

    Each has ``title``, ``step_size`` (None for RNN-EM), ``images``, and by step ``log_likelihood``, ``q`` and ``fell``:
    the share of images whose log likelihood is lower than a step before (one shorter).
    """
    em = copy.deepcopy(module.em).double()
    variants: list[tuple[str, float | None, NeuralEM]] = [("as trained", None, em)]
    if isinstance(em.m_step, GradientMStep):
        variants[0] = ("as trained", em.m_step.step_size.item(), em)
        variants += [(f"step size {eta:g}", eta, with_small_steps(em, eta)) for eta in SMALL_STEP_SIZES]
    return [_curve(title, eta, variant, module, images) for title, eta, variant in variants]


def _curve(title: str, eta: float | None, em: NeuralEM, module: NeuralEMModule, images: TensorImages) -> dict:
    em.to(device())
    found = []
    for index, batch in batches(images):
        image = batch["image"].double().to(device())
        generator = torch.Generator(device()).manual_seed(index)
        found.append(follow(em, image, module.num_components, STEPS, generator))
    log_likelihood, expectation = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return {
        "title": title,
        "step_size": eta,
        "images": len(images),
        "log_likelihood": log_likelihood.mean(1).tolist(),
        "q": expectation.mean(1).tolist(),
        "fell": fell(log_likelihood).double().mean(1).tolist(),
    }
