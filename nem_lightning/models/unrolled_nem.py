"""The M-step of N-EM for the fast path: forward and backward passes, written by hand."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nem_lightning.models.m_steps import GradientMStep
from nem_lightning.models.unrolled import Unrolled, sigmoid_backward, whole_registers


class UnrolledNEM(Unrolled):
    """theta' = theta + eta y (1 - y) back, back = residual W, y = sigmoid(theta); logits = sigmoid(theta') W^T."""

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        steps, components, batch, pixels, units, _ = sizes
        rows, width = components * batch, whole_registers(units)
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
