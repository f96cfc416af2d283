"""The M-step of RNN-EM for the fast path: forward and backward passes, written by hand."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.models.unrolled import Unrolled, aten, sigmoid_backward, whole_registers


class UnrolledRNNEM(Unrolled):
    """theta' = sigmoid(norm([residual, theta, 1] [U, V, b]^T)), logits = [theta', 1] [W, c]^T.

    Each bracket is one matrix, padded with zeros. [theta, 1] has a multiple of 16 columns, for whole SIMD registers.
    """

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        steps, components, batch, pixels, units, _ = sizes
        rows, width = components * batch, whole_registers(units + 1)
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
