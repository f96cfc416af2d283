"""The references to compare with: a plain loop without optimisations, and its matmuls alone.

Shapes: B images, K components, N pixels, D units, T steps.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainRNNEM(nn.Module):
    """RNN-EM with layer normalisation, loss on all steps."""

    def __init__(self, pixels: int, units: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(pixels, units)
        self.recurrence = nn.Linear(units, units, bias=False)
        self.norm = nn.LayerNorm(units)
        self.decoder = nn.Linear(units, pixels)

    def start(self, rows: tuple[int, int]) -> Tensor:
        return self.decoder.weight.new_zeros(*rows, self.recurrence.in_features)

    def m_step(self, residual: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = torch.sigmoid(self.norm(self.encoder(residual) + self.recurrence(theta)))
        return theta, self.decoder(theta)


class PlainNEM(nn.Module):
    """N-EM."""

    def __init__(self, pixels: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(pixels, units))
        self.step_size = nn.Parameter(torch.ones(units))
        nn.init.xavier_uniform_(self.weight)

    def start(self, rows: tuple[int, int]) -> Tensor:
        return self.weight.new_zeros(*rows, self.weight.shape[1])

    def m_step(self, residual: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        units = torch.sigmoid(theta)
        theta = theta + self.step_size * units * (1 - units) * (residual @ self.weight)
        return theta, torch.sigmoid(theta) @ self.weight.T


PlainModel = PlainRNNEM | PlainNEM
MODELS: dict[str, type[PlainModel]] = {"rnn_em": PlainRNNEM, "nem": PlainNEM}


def em_step(
    model: PlainModel, x: Tensor, noisy: Tensor, theta: Tensor, mu: Tensor, gamma: Tensor
) -> tuple[Tensor, ...]:
    """Compute one EM step and its loss. x, noisy: (B, 1, N); theta: (B, K, D); mu, gamma: (B, K, N)."""
    theta, logits = model.m_step(gamma * (noisy - mu), theta)
    log_p = x * logits - F.softplus(logits)
    gamma = torch.softmax(torch.log(log_p.exp() + 1e-6), 1)
    loss = (-gamma * log_p + (1 - gamma) * F.softplus(logits)).sum() / len(x)
    return theta, torch.sigmoid(logits), gamma, loss


def run(model: PlainModel, x: Tensor, noisy: Tensor, components: int, steps: int, step: Callable = em_step) -> Tensor:
    """Compute the loss, the mean over all steps. x, noisy: (B, 1, N)."""
    theta = model.start((len(x), components))
    gamma = torch.rand(len(x), components, x.shape[2], device=x.device)
    gamma = gamma / gamma.sum(1, keepdim=True)
    mu = torch.zeros_like(gamma)
    total: Tensor | float = 0.0
    for _ in range(steps):
        theta, mu, gamma, loss = step(model, x, noisy, theta, mu, gamma)
        total = total + loss / steps
    assert isinstance(total, Tensor)
    return total


class Products:
    """The matmuls of training on a batch, and nothing else. ``forward`` alone runs those of evaluation.

    Unnecessary matmuls are left out: theta is 0 before the first step, and the gradients of this theta and of the first
    residual are not needed. Each step has its own buffers, as in real training. They are allocated beforehand.
    """

    def __init__(self, name: str, rows: int, pixels: int, units: int, steps: int, device: torch.device) -> None:
        def make(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device) / pixels**0.5

        self.recurrent = name == "rnn_em"
        self.encoder, self.decoder, self.recurrence = make(units, pixels), make(pixels, units), make(units, units)
        self.residual, self.logits = make(steps, rows, pixels), make(steps, rows, pixels)
        self.d_logits, self.d_residual = make(steps, rows, pixels), make(steps, rows, pixels)
        self.theta, self.state = make(steps, rows, units), make(steps, rows, units)
        self.d_theta, self.d_state = make(steps, rows, units), make(steps, rows, units)

    def forward(self) -> None:
        for t in range(len(self.theta)):
            torch.mm(self.residual[t], self.encoder.T, out=self.theta[t])
            if self.recurrent and t:
                torch.addmm(self.theta[t], self.state[t - 1], self.recurrence.T, out=self.theta[t])
            torch.mm(self.state[t], self.decoder.T, out=self.logits[t])

    def backward(self, at_once: bool) -> None:
        """Run the backward matmuls. ``at_once``: one weight-gradient matmul for all steps, else one for each step."""
        for t in reversed(range(len(self.theta))):
            torch.mm(self.d_logits[t], self.decoder, out=self.d_state[t])
            if t:
                torch.mm(self.d_theta[t], self.encoder, out=self.d_residual[t])
                if self.recurrent:
                    torch.addmm(self.d_state[t], self.d_theta[t], self.recurrence, out=self.d_state[t])
            if not at_once:
                self.weights(t, t + 1)
        if at_once:
            self.weights(0, len(self.theta))

    def weights(self, start: int, stop: int) -> None:
        products = [(self.d_theta, self.residual, start), (self.d_logits, self.state, start)]
        if self.recurrent:
            products.append((self.d_theta, self.state, max(start, 1)))
        for one, other, first in products:
            if first < stop:
                torch.mm(one[first:stop].flatten(0, 1).T, other[first:stop].flatten(0, 1))
