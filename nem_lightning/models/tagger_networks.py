"""The networks of Tagger: a Ladder network, and a cheaper one of fully connected layers.

Shapes: N rows (a batch of images times their groups), D units.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("layer", "batch")


class Normalization(nn.Module):
    """Normalise to mean 0 and variance 1, without learned parameters: (N, D) -> (N, D).

    Layer normalisation is over units. Batch normalisation is over rows, so over images and their groups; each iteration
    has statistics of its own for evaluation, and iterations beyond those of training use the last one's.

    Args:
        units: D.
        norm: one of :data:`NORMS`.
        num_iterations: T in training.
    """

    def __init__(self, units: int, norm: str, num_iterations: int) -> None:
        super().__init__()
        self.units = units
        of_batch = (nn.BatchNorm1d(units, affine=False) for _ in range(num_iterations))
        self.of_iteration = nn.ModuleList(of_batch) if norm == "batch" else None

    def forward(self, values: Tensor, iteration: int) -> Tensor:
        """Normalise the values of an iteration, from 0."""
        if self.of_iteration is None:
            return F.layer_norm(values, (self.units,))
        return self.of_iteration[min(iteration, len(self.of_iteration) - 1)](values)


class Layer(nn.Module):
    """A linear map without bias, then a normalisation: (N, inputs) -> (N, units)."""

    def __init__(self, inputs: int, units: int, norm: str, num_iterations: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units, bias=False)
        self.norm = Normalization(units, norm, num_iterations)

    def forward(self, values: Tensor, iteration: int) -> Tensor:
        return self.norm(self.linear(values), iteration)


class Lateral(nn.Module):
    """Estimate a layer from the layer itself and from the layer above.

        z' = (z - mu(u)) v(u) + mu(u),      mu(u), v(u) = a1 sigmoid(a2 u + a3) + a4 u + a5,

    with a1 to a5 for each unit, and others for mu and for v. At first mu = 0 and v = 1, so z' = z.

    Source: Rasmus et al. 2015, Semi-Supervised Learning with Ladder Networks, section 3.2.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        mean, scale = (0.0, 1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 1.0)
        self.mean, self.scale = (
            nn.Parameter(torch.tensor(values)[:, None].repeat(1, units)) for values in (mean, scale)
        )

    def forward(self, values: Tensor, above: Tensor) -> Tensor:
        """(N, D), (N, D) -> (N, D)."""
        mu, v = (a[0] * torch.sigmoid(a[1] * above + a[2]) + a[3] * above + a[4] for a in (self.mean, self.scale))
        return (values - mu) * v + mu


class Ladder(nn.Module):
    """An encoder of normalised ReLU layers, and a decoder that estimates them from the top: (N, inputs) -> (N, D).

    The result is the estimate of the lowest layer.

    Args:
        inputs: values of a row.
        hidden_sizes: units of each layer of the encoder, D first.
        norm: one of :data:`NORMS`.
        num_iterations: T in training.

    Source: Greff et al. 2016, supplement; Rasmus et al. 2015.
    """

    def __init__(self, inputs: int, hidden_sizes: Sequence[int], norm: str, num_iterations: int) -> None:
        super().__init__()
        sizes = list(itertools.pairwise((inputs, *hidden_sizes)))
        self.encoder = nn.ModuleList(Layer(below, units, norm, num_iterations) for below, units in sizes)
        self.biases = nn.ParameterList(torch.zeros(units) for units in hidden_sizes)
        self.top = Normalization(hidden_sizes[-1], norm, num_iterations)
        self.decoder = nn.ModuleList(Layer(units, below, norm, num_iterations) for below, units in sizes[1:])
        self.laterals = nn.ModuleList(Lateral(units) for units in hidden_sizes)
        self.units = hidden_sizes[0]

    def forward(self, values: Tensor, iteration: int) -> Tensor:
        layers = []
        for layer, bias in zip(self.encoder, self.biases, strict=True):
            layers.append(layer(values, iteration))
            values = torch.relu(layers[-1] + bias)
        estimate = self.laterals[-1](layers[-1], self.top(values, iteration))
        for index in reversed(range(len(layers) - 1)):
            estimate = self.laterals[index](layers[index], self.decoder[index](estimate, iteration))
        return estimate


class Dense(nn.Module):
    """Normalised ReLU layers: (N, inputs) -> (N, D).

    Args:
        inputs: values of a row.
        hidden_sizes: units of each layer, D last.
        norm: one of :data:`NORMS`.
        num_iterations: T in training.
    """

    def __init__(self, inputs: int, hidden_sizes: Sequence[int], norm: str, num_iterations: int) -> None:
        super().__init__()
        sizes = itertools.pairwise((inputs, *hidden_sizes))
        self.layers = nn.ModuleList(Layer(below, units, norm, num_iterations) for below, units in sizes)
        self.biases = nn.ParameterList(torch.zeros(units) for units in hidden_sizes)
        self.units = hidden_sizes[-1]

    def forward(self, values: Tensor, iteration: int) -> Tensor:
        for layer, bias in zip(self.layers, self.biases, strict=True):
            values = torch.relu(layer(values, iteration) + bias)
        return values
