"""T steps of EM on binary images for the fast path: forward and backward passes, written by hand.

For binary pixels, all terms follow from the signed logit s, which is the logit l if x = 1, and -l if x = 0:

    p = P(x | mu) = sigmoid(s),      gamma_k = (p_k + smoothing) / sum_j (p_j + smoothing),

and for a black prior and lambda = 1 equation 5 of a step is  sum_nk  softplus(l_nk) - gamma_nk x_n l_nk.

Images are (K, B, N) with N = HW, or (R, N) in matmuls with R = K B rows. Each step has its own tensor.
"""

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nem_lightning.models.m_steps import GradientMStep, MStep, RecurrentMStep

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
        self.corrupted = corrupted.flatten(1)
        self.sign, self.black = 2 * self.image - 1, self.corrupted + self.image - 1
        self.load(em.m_step, weights)
        torch.mul(gamma.flatten(2).transpose(0, 1), self.corrupted - em.initial_mean, out=self.residual[0])
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
            torch.addcmul(self.black, self.sign, p, value=-1, out=missing)
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
        torch.sub(torch.mul(self.corrupted, weight, out=self.plane), d, out=x_l)  # x_l holds the gradient of l now


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


class UnrolledRNNEM(Unrolled):
    """theta' = sigmoid(norm([residual, theta, 1] [U, V, b]^T)), logits = [theta', 1] [W, c]^T.

    Each bracket is one matrix, padded with zeros. [theta, 1] has a multiple of 16 columns, for whole SIMD registers.
    """

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        steps, components, batch, pixels, units, _ = sizes
        rows, width = components * batch, _whole_registers(units + 1)
        self.uvb, self.wc = self.zeros(units, pixels + width), self.zeros(pixels, width)
        self.all_inputs = self.zeros(steps + 1, rows, pixels + width)  # theta of step t is in t + 1
        self.all_inputs[:, :, pixels + units] = 1
        self.all_d_units, self.all_logits = self.zeros(steps, rows, units), self.zeros(steps, rows, pixels)
        self.logits, self.residual = self.images(self.all_logits), self.images(self.all_inputs[:, :, :pixels])
        self.inputs, self.d_units, self.rows_of_logits = map(
            torch.unbind, (self.all_inputs, self.all_d_units, self.all_logits)
        )
        self.theta = self.all_inputs[:, :, pixels : pixels + units].unbind()
        self.theta_and_1 = self.all_inputs[:, :, pixels:].unbind()
        self.state = self.theta[-1]
        # units before the norm, of each step; scratch for the sigmoid
        self.units, self.y = self.zeros(steps, rows, units).unbind(), self.zeros(rows, units)
        # gradient of a step's inputs [residual, theta, 1]; gradient of [theta, 1] from both matmuls that use it
        self.d_inputs, self.d_theta_and_1 = self.zeros(rows, pixels + width), self.zeros(rows, width)
        self.d_residual = self.d_inputs[:, :pixels].unflatten(0, (components, batch))
        self.d_theta, self.d_theta_later = self.d_theta_and_1[:, :units], self.d_inputs[:, pixels:]

    @staticmethod
    def why_not(m_step: RecurrentMStep) -> str | None:
        if m_step.activation != "sigmoid":
            return f"the units are {m_step.activation}, not sigmoid"
        if type(m_step.encoder) is not nn.Flatten:
            return f"the encoder is {type(m_step.encoder).__name__}"
        if type(m_step.decoder) is not nn.Sequential or [*map(type, m_step.decoder)] != [nn.Linear, nn.Unflatten]:
            return "the decoder is not the plain linear layer"
        layers = {type(m_step.input_layer), type(m_step.recurrent_layer)}
        if layers != {nn.Linear} or type(m_step.norm) not in (nn.Identity, nn.LayerNorm):
            return "a layer of the M-step was replaced"
        return None

    @staticmethod
    def weights(m_step: RecurrentMStep) -> list[Tensor]:
        u, v, w = m_step.input_layer, m_step.recurrent_layer, cast(nn.Sequential, m_step.decoder)[0]
        norm = [m_step.norm.weight, m_step.norm.bias] if isinstance(m_step.norm, nn.LayerNorm) else []
        return [u.weight, u.bias, v.weight, cast(Tensor, w.weight), cast(Tensor, w.bias), *norm]

    def load(self, m_step: RecurrentMStep, weights: Sequence[Tensor]) -> None:
        u, b, v, w, c, *norm = weights
        pixels, units = w.shape
        self.u, self.b = u, b
        self.uvb[:, :pixels], self.uvb[:, pixels : pixels + units], self.uvb[:, pixels + units] = u, v, b
        self.wc[:, :units], self.wc[:, units] = w, c
        self.d_theta_later.zero_()
        self.norm, self.d_norm = norm, [torch.zeros_like(weight) for weight in norm]
        self.eps, self.moments = getattr(m_step.norm, "eps", 0), []

    def m_step(self, t: int) -> None:
        if t == 0:  # theta is 0, so V is not needed
            units = torch.addmm(self.b, self.inputs[0][:, : len(self.wc)], self.u.T, out=self.units[0])
        else:
            units = torch.mm(self.inputs[t], self.uvb.T, out=self.units[t])
        if self.norm:
            gain, shift = self.norm
            units, *moments = torch.native_layer_norm(units, units.shape[1:], gain, shift, self.eps)
            self.moments.append(moments)
        self.theta[t + 1].copy_(torch.sigmoid(units, out=self.y))
        torch.mm(self.theta_and_1[t + 1], self.wc.T, out=self.rows_of_logits[t])

    def m_step_backward(self, t: int) -> None:
        # rows_of_logits[t] holds the gradient of l; d_theta_later that of [theta, 1] from step t + 1
        torch.addmm(self.d_theta_later, self.rows_of_logits[t], self.wc, out=self.d_theta_and_1)
        d_units = sigmoid_backward(self.d_theta, self.theta[t + 1], grad_input=self.d_units[t])
        if self.norm:
            d_normed, *d_norm = aten.native_layer_norm_backward(
                d_units, self.units[t], d_units.shape[1:], *self.moments[t], *self.norm, [True, True, True]
            )
            d_units.copy_(d_normed)  # d_units holds the gradient of the units before the norm now
            for total, part in zip(self.d_norm, d_norm, strict=True):
                total += part
        if t:  # d_inputs, and so d_residual and d_theta_later, holds the gradients of the inputs of step t now
            torch.mm(d_units, self.uvb, out=self.d_inputs)

    def gradients(self) -> list[Tensor]:
        pixels, units = self.wc.shape[0], self.y.shape[1]  # all_logits holds the gradients of l
        uvb = self.all_d_units.flatten(0, 1).T @ self.all_inputs[:-1].flatten(0, 1)
        wc = self.all_logits.flatten(0, 1).T @ self.all_inputs[1:, :, pixels:].flatten(0, 1)
        u, v, b = uvb[:, :pixels], uvb[:, pixels : pixels + units], uvb[:, pixels + units]
        return [u, b, v, wc[:, :units], wc[:, units], *self.d_norm]


class UnrolledNEM(Unrolled):
    """theta' = theta + eta y (1 - y) back, back = residual W, y = sigmoid(theta); logits = sigmoid(theta') W^T."""

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        steps, components, batch, pixels, units, _ = sizes
        rows, width = components * batch, _whole_registers(units)
        self.w = self.zeros(pixels, width)
        # One matmul gives the gradient of W: all_images holds the logits, later their gradients, and the residuals;
        # all_factors holds y and d_back, which multiply them.
        self.all_images, self.all_factors = self.zeros(2 * steps, rows, pixels), self.zeros(2 * steps + 1, rows, width)
        all_logits, all_residuals = self.all_images.split(steps)
        self.logits, self.residual = self.images(all_logits), self.images(all_residuals)
        self.rows_of_logits, self.rows_of_residual = all_logits.unbind(), all_residuals.unbind()
        self.y, self.d_back = self.all_factors[: steps + 1].unbind(), self.all_factors[steps + 1 :].unbind()
        self.y[0].fill_(0.5)
        self.back, self.gradient = (self.zeros(steps, rows, width).unbind() for _ in range(2))  # gradient: dQ / dtheta
        self.theta, self.d_theta, self.d_y, self.d_gradient = self.zeros(4, rows, width).unbind()
        self.state = self.theta[:, :units]
        self.d_rows = self.zeros(rows, pixels)
        self.d_residual = self.d_rows.unflatten(0, (components, batch))

    @staticmethod
    def why_not(m_step: GradientMStep) -> str | None:
        fits = m_step.step_size.shape in ((), (m_step.state_size,))
        return None if fits else "the step size is neither one number nor one for each unit"

    @staticmethod
    def weights(m_step: GradientMStep) -> list[Tensor]:
        return [m_step.weight, m_step.step_size]

    def load(self, m_step: GradientMStep, weights: Sequence[Tensor]) -> None:
        w, eta = weights
        self.w[:, : w.shape[1]] = w
        units, width = w.shape[1], self.w.shape[1]
        self.eta, self.shape_of_eta = F.pad(eta.expand(units), (0, width - units)), eta.shape
        self.d_eta = torch.zeros_like(self.eta)
        for start in (self.theta, self.d_theta, self.d_y):
            start.zero_()

    def m_step(self, t: int) -> None:
        torch.mm(self.rows_of_residual[t], self.w, out=self.back[t])
        sigmoid_backward(self.back[t], self.y[t], grad_input=self.gradient[t])
        torch.sigmoid(self.theta.addcmul_(self.gradient[t], self.eta), out=self.y[t + 1])  # theta holds theta' now
        torch.mm(self.y[t + 1], self.w.T, out=self.rows_of_logits[t])

    def m_step_backward(self, t: int) -> None:
        d_y = self.d_y  # the gradient of y[t + 1] through y (1 - y) of step t + 1
        d_y.addmm_(self.rows_of_logits[t], self.w)  # rows_of_logits[t] holds the gradient of l; d_y is complete now
        self.d_theta += sigmoid_backward(d_y, self.y[t + 1], grad_input=d_y)  # d_y holds that of theta through y now
        self.d_eta += torch.linalg.vecdot(self.d_theta, self.gradient[t], dim=0)
        d_gradient = torch.mul(self.d_theta, self.eta, out=self.d_gradient)
        sigmoid_backward(d_gradient, self.y[t], grad_input=self.d_back[t])
        if t:  # d_y holds the gradient of y[t] through y (1 - y) now, and d_rows that of the residual of step t
            d_y.fill_(1).sub_(self.y[t], alpha=2).mul_(self.back[t]).mul_(d_gradient)
            torch.mm(self.d_back[t], self.w.T, out=self.d_rows)

    def gradients(self) -> list[Tensor]:
        w = self.all_images.flatten(0, 1).T @ self.all_factors[1:].flatten(0, 1)
        units = self.state.shape[1]
        return [w[:, :units], self.d_eta[:units].sum_to_size(self.shape_of_eta)]


def _sum(images: Tensor, out: Tensor) -> Tensor:
    """Sum over the components, (K, B, N) -> (B, N)."""
    first, *others = images.unbind()
    out.copy_(first) if not others else torch.add(first, others[0], out=out)
    for other in others[1:]:
        out += other
    return out


def _whole_registers(count: int) -> int:
    return -(-count // 16) * 16


UNROLLED: dict[type[MStep], type[Unrolled]] = {RecurrentMStep: UnrolledRNNEM, GradientMStep: UnrolledNEM}
