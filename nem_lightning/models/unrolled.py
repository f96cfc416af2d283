"""T steps of EM on binary images for the fast path: forward and backward passes, written by hand.

For binary pixels, all terms follow from the signed logit s, which is the logit l if x = 1, and -l if x = 0:

    p = P(x | mu) = sigmoid(s),      gamma_k = (p_k + smoothing) / sum_j (p_j + smoothing),

and for a black prior and lambda = 1 equation 5 of a step is  sum_nk  softplus(l_nk) - gamma_nk x_n l_nk.

Images are (K, B, N) with N = HW, or (R, N) in matmuls with R = K B rows. Each step has its own tensor.
"""

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nem_lightning.models.em import NeuralEM

aten = torch.ops.aten
sigmoid_backward = aten.sigmoid_backward.grad_input  # the gradient of x from that of y, for y = sigmoid(x)


class Unrolled(abc.ABC):
    """T steps of EM on images of one shape, forward and backward. There is a subclass for each M-step.

    ``why_not`` gives the reason if the subclass does not apply to an M-step. ``weights`` gives all weights of an
    M-step, and ``load`` copies their values. ``m_step`` computes the new theta and the logits from a residual,
    ``m_step_backward`` the gradient of the residual from that of the logits. ``gradients`` gives those of the weights.
    """

    logits: Sequence[Tensor]
    """Views of the M-step's output, reused in place: logits l, signed logits s, x l if the step counts in the loss,
    then the gradient of l."""
    residual: Sequence[Tensor]
    """Views of the M-step's input."""
    state: Tensor
    """theta after the last step, (R, D)."""
    d_residual: Tensor
    """The gradient of the M-step's input, (K, B, N)."""

    def __init__(self, steps: int, components: int, batch: int, pixels: int, units: int, dtype: torch.dtype) -> None:
        self.made_for = (steps, components, batch, pixels, units, dtype)
        # P(x | mu); gamma; corrupted - mu
        self.p, self.gamma, self.missing = (self.zeros(steps, components, batch, pixels).unbind() for _ in range(3))
        self.scale = self.zeros(steps, batch, pixels).unbind()  # 1 / sum_k (p_k + smoothing)
        self.plane, self.product = self.zeros(2, batch, pixels).unbind()  # scratch; products of _Logarithms
        self.spare = self.zeros(components, batch, pixels)  # scratch
        self.ones = torch.ones_like(self.spare).view(-1)

    @staticmethod
    @abc.abstractmethod
    def why_not(m_step: Any) -> str | None: ...

    @staticmethod
    @abc.abstractmethod
    def weights(m_step: Any) -> list[Tensor]: ...

    @abc.abstractmethod
    def load(self, m_step: Any, weights: Sequence[Tensor]) -> None: ...

    @abc.abstractmethod
    def m_step(self, t: int) -> None: ...

    @abc.abstractmethod
    def m_step_backward(self, t: int) -> None: ...

    @abc.abstractmethod
    def gradients(self) -> list[Tensor]: ...

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.made_for[-1])

    def images(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Give views (K, B, N) of each step of ``rows``, (T, R, N)."""
        return rows.unflatten(1, self.made_for[1:3]).unbind()

    def forward(
        self, em: "NeuralEM", image: Tensor, corrupted: Tensor, gamma: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the loss, and theta (B, K, D) and logits (B, K, N) of the last step. ``gamma`` is the first gamma."""
        steps, components, batch, *_ = self.made_for
        self.step_weights = em.loss.weights(steps)
        self.image = image.flatten(1)
        seen = [frame.flatten(1) for frame in corrupted.unbind(1)]  # one, or one for each step
        black, later = [frame + self.image - 1 for frame in seen], [min(t + 1, len(seen) - 1) for t in range(steps)]
        self.corrupted = [seen[t] for t in later]  # what the M-step sees after each step
        self.sign = 2 * self.image - 1
        self.load(em.m_step, weights)
        torch.mul(gamma.flatten(2).transpose(0, 1), seen[0] - em.initial_mean, out=self.residual[0])
        positive, on, logarithms = [], [], _Logarithms(self.product)
        for t, weight in enumerate(self.step_weights):
            self.m_step(t)  # logits[t], which is s below, holds l now
            s, p, gamma, missing, scale = self.logits[t], self.p[t], self.gamma[t], self.missing[t], self.scale[t]
            if t + 1 == steps:
                self.params = s.transpose(0, 1).clone(memory_format=torch.contiguous_format)
            if weight:  # softplus(l) = max(l, 0) + log(1 + exp(-|l|)); this is the first term
                positive.append(torch.dot(torch.clamp_min(s, 0, out=self.spare).view(-1), self.ones))
            # E-step: p, gamma = (p + smoothing) scale, and missing = corrupted - mu, with mu = 1 - x + sign p
            torch.sigmoid(s.mul_(self.sign), out=p)  # s holds the signed logits now
            _sum(p, out=scale).add_(components * em.smoothing).reciprocal_()
            torch.addcmul(torch.mul(scale, em.smoothing, out=self.plane), p, scale, out=gamma)
            torch.addcmul(black[later[t]], self.sign, p, value=-1, out=missing)
            if t + 1 < steps:
                torch.mul(gamma, missing, out=self.residual[t + 1])
            if weight:  # the second term: log(1 + exp(-|l|)) = -log max(p, 1 - p)
                high = torch.maximum(p, torch.sub(1, p, out=self.spare), out=self.spare)
                logarithms.add(high, -weight)
                on.append(torch.dot(gamma.view(-1), s.mul_(self.image).view(-1)))  # s holds x l now
        losses = torch.stack(positive) - torch.stack(on)
        total = torch.dot(losses, losses.new_tensor([weight for weight in self.step_weights if weight]))
        state = self.state.unflatten(0, (components, batch)).transpose(0, 1)
        return (total + logarithms.sum()) / batch, state.clone(memory_format=torch.contiguous_format), self.params

    def backward(self, detach: bool) -> list[Tensor]:
        """Give the gradients of the weights, in their order. ``detach``: gradients stop at gamma."""
        d_residual = self.d_residual.zero_()
        for t in reversed(range(len(self.step_weights))):
            self._d_logits(t, self.step_weights[t] / len(self.image), d_residual, detach)
            self.m_step_backward(t)
        return self.gradients()

    def _d_logits(self, t: int, weight: float, d_residual: Tensor, detach: bool) -> None:
        """Write the gradient of l into ``logits[t]``. ``d`` holds minus the gradient of mu, then minus that of l."""
        x_l, p, gamma, missing, d = self.logits[t], self.p[t], self.gamma[t], self.missing[t], self.spare
        if not detach:
            # residual = gamma missing, and the loss has -weight gamma x l. To reuse x l, d_gamma is the gradient of
            # gamma divided by -weight (not divided if weight is 0), and slope is multiplied by the same factor.
            slope = self.scale[t].mul_(self.sign).mul_(-weight or 1)  # scale holds the slope now
            if weight:
                d_gamma = x_l.addcmul_(missing, d_residual, value=-1 / weight)  # x_l holds d_gamma now
            else:
                d_gamma = torch.mul(missing, d_residual, out=x_l)  # x_l holds d_gamma now
            # Backward through the normalisation of gamma and through missing: d = minus the gradient of mu
            common = _sum(torch.mul(gamma, d_gamma, out=d), out=self.plane).mul_(slope)
            torch.addcmul(common, d_gamma, slope, value=-1, out=d).addcmul_(gamma, d_residual)
        else:
            torch.mul(gamma, d_residual, out=d)  # d residual / d mu = -gamma
        # d holds minus the gradient of l now: d mu / d l = mu (1 - mu) = p (1 - p)
        sigmoid_backward(d, p, grad_input=d)
        if weight:  # the loss at fixed gamma has the gradient mu - gamma x, with mu = corrupted - missing
            d.add_(missing.addcmul_(gamma, self.image), alpha=weight)  # missing holds missing + gamma x now
        torch.sub(torch.mul(self.corrupted[t], weight, out=self.plane), d, out=x_l)  # x_l holds the gradient of l now


class _Logarithms:
    """The weighted sum of logarithms of values in [1/2, 1]. A logarithm costs as much as several multiplications, so it
    is taken of products of up to a hundred values."""

    def __init__(self, product: Tensor) -> None:
        self.product, self.factors, self.weight, self.total = product, 0, 0.0, 0.0

    def add(self, values: Tensor, weight: float) -> None:
        for value in values.unbind():
            if self.factors == 100 or weight != self.weight:
                self.total, self.factors, self.weight = self.sum(), 0, weight
            self.product.mul_(value) if self.factors else self.product.copy_(value)
            self.factors += 1

    def sum(self) -> Tensor | float:
        return self.total + self.weight * self.product.log().sum() if self.factors else self.total


def _sum(images: Tensor, out: Tensor) -> Tensor:
    """Sum over the components, (K, B, N) -> (B, N)."""
    first, *others = images.unbind()
    out.copy_(first) if not others else torch.add(first, others[0], out=out)
    for other in others[1:]:
        out += other
    return out


def whole_registers(count: int) -> int:
    return -(-count // 16) * 16
