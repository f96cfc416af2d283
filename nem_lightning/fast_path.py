"""A quicker training step of the default RNN-EM on a CPU.

:class:`FastPath` gives the loss of the loop in :mod:`nem_lightning.em` and :mod:`nem_lightning.losses`, which
stays its definition, and its gradients, written out. What makes it faster:

- the weight gradients of all steps are one product each, and products with zeros are left out;
- log P(x | mu), its softmax over K and equation 5 share their terms, and few logarithms are taken;
- it computes in memory that it keeps: to touch fresh memory costs more than the arithmetic.

Binary pixels let one number stand for all. With s = l where x = 1 and -l where x = 0, l the logit,

    p = P(x | mu) = sigmoid(s),      gamma_k = (p_k + smoothing) / sum_j (p_j + smoothing),

and for a black prior equation 5 of a step is, with e_nk = softplus(l_nk) and lambda the prior's weight,

    sum_nk  lambda e_nk + (1 - lambda) gamma_nk e_nk - gamma_nk x_n l_nk.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nem_lightning.em import NeuralEM
from nem_lightning.likelihoods import Bernoulli
from nem_lightning.losses import NeuralEMLoss, StepLoss
from nem_lightning.m_steps import RecurrentMStep

aten = torch.ops.aten

ACTIVATIONS = {
    "sigmoid": (torch.sigmoid, aten.sigmoid_backward.grad_input),
    "tanh": (torch.tanh, aten.tanh_backward.grad_input),
}
"""y = f(x), and d x from d y and y, into given memory."""


class TrainingLoss(NamedTuple):
    """What a training step minimises, and what it logs of the last EM step."""

    total: Tensor
    last: StepLoss
    reconstruction_error: Tensor


class FastPath:
    """The loss of a batch, with its gradients, where :meth:`applies` says so. Holds the memory it computes in."""

    def __init__(self) -> None:
        self._unrolled: _Unrolled | None = None

    def __reduce__(self) -> tuple:
        return FastPath, ()  # a copy has memory of its own

    @staticmethod
    def applies(em: NeuralEM, loss: NeuralEMLoss, image: Tensor) -> bool:
        """Whether this is the case written out here: RNN-EM with the plain encoder and decoder, a black prior,
        binary images of one channel, on a CPU, nothing of it replaced, hooked or compiled."""
        m_step = em.m_step
        return (
            image.device.type == "cpu"
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and type(em) is NeuralEM
            and type(m_step) is RecurrentMStep
            and m_step.activation in ACTIVATIONS
            and type(m_step.encoder) is nn.Flatten
            and type(m_step.input_layer) is type(m_step.recurrent_layer) is nn.Linear
            and type(m_step.decoder) is nn.Sequential
            and [type(layer) for layer in m_step.decoder] == [nn.Linear, nn.Unflatten]
            and len(list(em.parameters())) == {nn.Identity: 5, nn.LayerNorm: 7}.get(type(m_step.norm))
            and not any(_is_altered(module) for module in em.modules())
            and all(weight.dtype == image.dtype and weight.device == image.device for weight in em.parameters())
            and type(loss) is NeuralEMLoss
            and "of_step" not in vars(loss)
            and type(em.likelihood) is type(loss.likelihood) is Bernoulli
            and loss.prior == 0
            and em.smoothing >= 1e-20
            and tuple(image.shape[1:]) == m_step.image_shape == (1, *image.shape[2:])
            and torch.equal(image * image, image)
        )

    def __call__(
        self,
        em: NeuralEM,
        loss: NeuralEMLoss,
        image: Tensor,
        corrupted: Tensor | None = None,
        *,
        num_components: int,
        num_steps: int,
        generator: torch.Generator | None = None,
    ) -> TrainingLoss:
        """What ``em`` on (B, 1, H, W), then ``loss`` give."""
        m_step = em.m_step
        gamma = em.first_responsibilities(image, num_components, generator).flatten(2)  # (B, K, N)
        like = (num_steps, *gamma.shape, m_step.state_size, gamma.dtype)
        if self._unrolled is None or self._unrolled.like != like:
            self._unrolled = _Unrolled(*like)
        weights = (
            m_step.input_layer.weight,
            m_step.input_layer.bias,
            m_step.recurrent_layer.weight,
            *m_step.decoder[0].parameters(),
            *m_step.norm.parameters(),
        )
        image, corrupted = image.flatten(2), (image if corrupted is None else corrupted).flatten(2)
        total, intra, inter, error = _Loss.apply(self._unrolled, em, loss, image, corrupted, gamma, *weights)
        return TrainingLoss(total, StepLoss(intra + loss.prior_weight * inter, intra, inter), error)


def _is_altered(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    replaced = {"forward", "step", "e_step"} & vars(module).keys()
    return any(hooks) or bool(replaced) or module._compiled_call_impl is not None


class _Loss(torch.autograd.Function):
    """The loss, and of the last step the two terms of equation 5 and the reconstruction error.

    The gradients are formed along with the loss; backward only hands them out.
    """

    @staticmethod
    def forward(ctx, unrolled: "_Unrolled", em, loss, image, corrupted, gamma, *weights) -> tuple[Tensor, ...]:
        losses = unrolled.forward(em, loss, image, corrupted, gamma, weights)
        ctx.gradients = unrolled.backward() if any(ctx.needs_input_grad) else ()
        ctx.mark_non_differentiable(*losses[1:])
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, total: Tensor, *_) -> tuple[Tensor | None, ...]:
        asked = zip(ctx.gradients, ctx.needs_input_grad[6:], strict=True)
        return *[None] * 6, *(gradient * total if needed else None for gradient, needed in asked)


class _Unrolled:
    """T steps on images of one shape, forward and back. Images are (B, K, N), N = HW, or (B K, N) to products."""

    def __init__(self, steps: int, batch: int, components: int, pixels: int, units: int, dtype: torch.dtype) -> None:
        self.like = (steps, batch, components, pixels, units, dtype)
        self.one = torch.ones((), dtype=dtype)
        rows = batch * components

        def of_images(*leading: int, k: int = components) -> Tensor:
            return torch.empty(*leading, batch, k, pixels, dtype=dtype)

        def of_units() -> Tensor:
            return torch.empty(steps, rows, units, dtype=dtype)

        # Kept of each step; the rest is computed anew on the way back.
        self.residual, self.s = of_images(steps), of_images(steps)  # on the way back, s becomes the logits' gradient
        self.scale = of_images(steps, k=1)  # 1 / sum_k (p_k + smoothing)
        self.units, self.state, self.d_units = of_units(), of_units(), of_units()  # units: U residual + V theta + b
        self.p, self.gamma, self.missing, self.d_residual, self.spare = (of_images() for _ in range(5))
        self.plane = of_images(k=1)

    def forward(
        self,
        em: NeuralEM,
        loss: NeuralEMLoss,
        image: Tensor,
        corrupted: Tensor,
        gamma: Tensor,
        weights: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """The loss; of the last step intra, inter and the reconstruction error. Images are (B, 1, N), gamma is that
        before the first step, weights are U, b, V, the decoder's and the layer norm's."""
        self.em, self.image, self.corrupted, self.prior_weight = em, image, corrupted, loss.prior_weight
        self.step_weights = step_weights = loss.weights(len(self.s))
        self.u, self.b, self.v, self.w, self.c, *self.norm = weights
        self.sign, self.black = 2 * image - 1, corrupted + image - 1
        self.moments = []
        activation, self.activation_backward = ACTIVATIONS[em.m_step.activation]
        u, v, w, spare = self.u.T, self.v.T, self.w.T, self.spare
        positive, on = [], []  # of each step, the sums in equation 5
        torch.mul(gamma, corrupted - em.initial_mean, out=self.residual[0])
        steps = zip(step_weights, self.residual, self.s, self.units, self.state, strict=True)
        for t, (weight, residual, s, units, state) in enumerate(steps):
            last = t + 1 == len(step_weights)
            # M-step
            torch.addmm(self.b, residual.flatten(0, 1), u, out=units)
            if t > 0:
                units.addmm_(self.state[t - 1], v)
            activation(self._normed(units), out=state)
            torch.addmm(self.c, state, w, out=s.flatten(0, 1))  # the logits
            if weight > 0 or last:
                positive.append(torch.clamp_min(s, 0, out=spare).sum())
            # E-step
            torch.sigmoid(s.mul_(self.sign), out=self.p)
            scale = torch.sum(self.p, 1, keepdim=True, out=self.scale[t])
            scale.add_(s.shape[1] * em.smoothing).reciprocal_()
            self._e_step(scale)
            if weight > 0 or last:
                torch.maximum(self.p, torch.add(self.one, self.p, alpha=-1, out=spare), out=spare)
                positive[-1] -= _sum_of_logs(spare)  # log(1 + exp(-|l|)) = -log max(p, 1 - p)
                on.append(_dot(self.gamma, torch.mul(s, image, out=spare)))
                if self.prior_weight != 1:
                    positive[-1] *= self.prior_weight
                    on[-1] -= (1 - self.prior_weight) * _dot(self.gamma, self._softplus(s))
            if not last:
                torch.mul(self.gamma, self.missing, out=self.residual[t + 1])
        losses = (torch.stack(positive) - torch.stack(on)) / len(image)
        counted = [weight for t, weight in enumerate(step_weights) if weight > 0 or t + 1 == len(step_weights)]
        spare = self._softplus(s)
        inter = (spare.sum() - _dot(self.gamma, spare)) / len(image)
        mean = torch.sub(corrupted, self.missing, out=spare)
        error = (image - mean.mul_(self.gamma).sum(1, keepdim=True)).square().mean()
        return _dot(losses, losses.new_tensor(counted)), losses[-1] - self.prior_weight * inter, inter, error

    def _softplus(self, s: Tensor) -> Tensor:
        """Of the logits, into ``spare``."""
        return aten.softplus.out(torch.mul(s, self.sign, out=self.spare), 1, 40, out=self.spare)

    def _e_step(self, scale: Tensor) -> None:
        """From p, gamma and, of the residual, corrupted - mu, which is -p or 1 - p where nothing was corrupted."""
        torch.addcmul(torch.mul(scale, self.em.smoothing, out=self.plane), self.p, scale, out=self.gamma)
        torch.addcmul(self.black, self.sign, self.p, value=-1, out=self.missing)

    def _normed(self, units: Tensor) -> Tensor:
        if not self.norm:
            return units
        normed, *moments = torch.native_layer_norm(units, units.shape[1:], *self.norm, self.em.m_step.norm.eps)
        self.moments.append(moments)
        return normed

    def backward(self) -> list[Tensor]:
        """The gradients of the loss, in the order of ``weights``."""
        counted = 1 + max(t for t, weight in enumerate(self.step_weights) if weight > 0)
        self.d_norm = [torch.zeros_like(weight) for weight in self.norm]
        d_residual = d_state = None
        for t in reversed(range(counted)):
            d_logits = self._d_logits(t, self.step_weights[t] / len(self.image), d_residual).flatten(0, 1)
            d_state = d_logits @ self.w if d_state is None else d_state.addmm_(d_logits, self.w)
            d_units = self._d_units(t, d_state)
            if t > 0:
                d_residual = self.d_residual
                torch.mm(d_units, self.u, out=d_residual.flatten(0, 1))
                torch.mm(d_units, self.v, out=d_state)
        kept = (self.d_units, self.s, self.residual, self.state)
        d_units, d_logits, residual, state = (x[:counted].flatten(0, -2) for x in kept)
        rows = len(d_units) // counted
        return [
            d_units.T @ residual,
            d_units.sum(0),
            d_units[rows:].T @ state[:-rows],  # theta = 0 before the first step
            d_logits.T @ state,
            d_logits.sum(0),
            *self.d_norm,
        ]

    def _d_logits(self, t: int, weight: float, d_residual: Tensor | None) -> Tensor:
        """Takes the place of ``s``."""
        s, p, gamma, missing, d = self.s[t], self.p, self.gamma, self.missing, self.spare
        if t + 1 < len(self.step_weights):  # else they are still there
            torch.sigmoid(s, out=p)
            self._e_step(self.scale[t])
        if self.em.differentiate_responsibilities:
            # Of gamma: residual = gamma * missing, and the loss has gamma ((1 - lambda) e - x l). Then back through
            # the normalisation.
            loosened = weight * (1 - self.prior_weight)
            e = self._softplus(s) if loosened else None
            d_gamma = torch.mul(s, -weight * self.image, out=s)
            if loosened:
                d_gamma.add_(e, alpha=loosened)
            if d_residual is not None:
                d_gamma.addcmul_(missing, d_residual)
            slope = self.scale[t].mul_(self.sign)
            torch.mul(gamma, d_gamma, out=d)
            common = torch.sum(d, 1, keepdim=True, out=self.plane).mul_(slope).neg_()
            torch.addcmul(common, d_gamma, slope, out=d)
        else:
            d.zero_()
        if d_residual is not None:
            d.addcmul_(gamma, d_residual, value=-1)  # d residual / d mu = -gamma
        aten.sigmoid_backward.grad_input(d, p, grad_input=d)  # d mu / d l = mu (1 - mu) = p (1 - p)
        if weight == 0:
            return s.copy_(d)
        # Of the loss, gamma fixed: mu (lambda + (1 - lambda) gamma) - gamma x, with mu = corrupted - missing.
        if self.prior_weight == 1:
            missing.addcmul_(gamma, self.image)
            torch.add(d, missing, alpha=-weight, out=s)
            return s.add_(torch.mul(self.corrupted, weight, out=self.plane))
        torch.addcmul(d, gamma, self.image, value=-weight, out=s)
        gamma.mul_(1 - self.prior_weight).add_(self.prior_weight)
        return s.addcmul_(torch.sub(self.corrupted, missing, out=missing), gamma, value=weight)

    def _d_units(self, t: int, d_state: Tensor) -> Tensor:
        d_units = self.d_units[t]
        self.activation_backward(d_state, self.state[t], grad_input=d_units)
        if self.norm:
            d_normed, *d_norm = aten.native_layer_norm_backward(
                d_units, self.units[t], d_units.shape[1:], *self.moments[t], *self.norm, [True, True, True]
            )
            d_units.copy_(d_normed)
            for total, part in zip(self.d_norm, d_norm, strict=True):
                total += part
        return d_units


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.dot(one.view(-1), other.view(-1))


def _sum_of_logs(x: Tensor) -> Tensor:
    """Of values in [1/2, 1], which are overwritten; a logarithm costs as much as several products."""
    x = x.view(-1)
    for _ in range(6):
        if len(x) % 2 == 0:
            one, other = x.chunk(2)
            x = one.mul_(other)
    return x.log().sum()
