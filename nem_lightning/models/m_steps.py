"""The M-step: computes the new state and means of each component from its residual.

An M-step (:class:`MStep`) is a module that is called with ``residual`` (B, K, C, H, W) and ``state`` (B, K, D), and
gives the new ``state`` (B, K, D) and ``params`` (B, K, C, H, W). Weights are shared over the K
components. It has two attributes: ``image_shape`` (C, H, W) and ``state_size`` D.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nem_lightning.errors import InputError, require, require_count, require_flag, require_positive
from nem_lightning.models.grouping import checked_shape


class MStep(nn.Module):
    """A module that is called with ``residual`` and ``state``; see the top of this file."""

    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    state_size: int
    """D."""


ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def require_activation(name: str) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` unless ``name`` is one of :data:`ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise InputError(f"activation={name!r}: must be one of {', '.join(ACTIVATIONS)}")


class GradientMStep(MStep):
    """N-EM: one step of gradient ascent on the expected log likelihood Q (equation 4).

    The decoder is f(theta) = s(theta) W^T with s the sigmoid; f gives logits (Bernoulli) or means
    (Gaussian). For both, the gradient of Q with respect to f is the residual gamma (x - mu), up to
    the factor 1 / sigma^2, which the learned step size absorbs. By the chain rule

        theta' = theta + eta * s'(theta) * (residual W),      s' = s (1 - s).

    eta is one number as published, or one for each unit; either way, a small enough step never lowers Q.

    The weights W are tied: the gradient step uses the decoder's weights. The gradient is written
    by hand, so that autograd differentiates the step like any other layer.

    Args:
        image_shape: (C, H, W).
        hidden_size: D, the number of sigmoid units.
        step_size: initial value of the learned step size eta, greater than 0. (The authors' code
            draws its sign at random; with a negative one, training stalls.)
        step_size_by_unit: whether each of the D units has a step size of its own.

    Raises:
        InputError: a size below 1, a step size that is not positive, or a flag that is not true or false.

    Source: Greff et al. 2017, equation 4; W without a bias, as in the authors' code.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_size: int = 250,
        step_size: float = 1.0,
        step_size_by_unit: bool = False,
    ) -> None:
        super().__init__()
        self.image_shape = checked_shape(image_shape)
        require_count("hidden_size", hidden_size)
        require_positive("step_size", step_size)
        require_flag("step_size_by_unit", step_size_by_unit)
        self.state_size = hidden_size
        self.weight = nn.Parameter(torch.empty(math.prod(self.image_shape), hidden_size))  # (CHW, D)
        self.step_size = nn.Parameter(torch.full((hidden_size,) if step_size_by_unit else (), float(step_size)))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, residual: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step: (B, K, C, H, W), (B, K, D) -> new state (B, K, D), params (B, K, C, H, W)."""
        units = torch.sigmoid(state)
        gradient = units * (1 - units) * (residual.flatten(2) @ self.weight)  # dQ / dtheta, (B, K, D)
        state = state + self.step_size * gradient
        return state, self.decode(state)

    def decode(self, state: Tensor) -> Tensor:
        """Give f(theta): (B, K, D) -> (B, K, C, H, W)."""
        return (torch.sigmoid(state) @ self.weight.T).unflatten(-1, self.image_shape)


class _NetworkMStep(MStep):
    """An encoder, recurrent units and a decoder. A subclass gives the units' :meth:`next_state`."""

    def __init__(self, image_shape: Sequence[int], hidden_size: int, encoder: nn.Module | None) -> None:
        super().__init__()
        self.image_shape = checked_shape(image_shape)
        require_count("hidden_size", hidden_size)
        self.state_size = hidden_size
        self.encoder = encoder if encoder is not None else nn.Flatten()

    def _count_features(self) -> int:
        return _output_of(self.encoder, torch.zeros(1, *self.image_shape)).flatten(1).shape[1]

    def _set_decoder(self, decoder: nn.Module | None) -> None:
        """Take a decoder, by default one linear layer (Glorot uniform)."""
        if decoder is None:
            linear = nn.Linear(self.state_size, math.prod(self.image_shape))
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            decoder = nn.Sequential(linear, nn.Unflatten(1, self.image_shape))
        self.decoder = decoder
        decoded = tuple(_output_of(self.decoder, torch.zeros(1, self.state_size)).shape[1:])
        require(
            decoded == self.image_shape,
            f"decoder: gives images of shape {decoded}, must give image_shape={self.image_shape}",
        )

    def next_state(self, features: Tensor, state: Tensor) -> Tensor:
        """Give theta': (N, F), (N, D) -> (N, D)."""
        raise NotImplementedError

    def forward(self, residual: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step: (B, K, C, H, W), (B, K, D) -> new state (B, K, D), params (B, K, C, H, W)."""
        features = self.encoder(residual.flatten(0, 1)).flatten(1)  # (B*K, F)
        state = self.next_state(features, state.flatten(0, 1))  # (B*K, D)
        params = self.decoder(state)  # (B*K, C, H, W)
        batch_and_components = residual.shape[:2]
        return state.unflatten(0, batch_and_components), params.unflatten(0, batch_and_components)


class RecurrentMStep(_NetworkMStep):
    """RNN-EM: a recurrent network in place of the gradient step.

        theta' = activation(norm(U encoder(residual) + V theta + b)),      params = decoder(theta').

    The paper uses no norm.

    Args:
        image_shape: (C, H, W).
        hidden_size: D, the number of recurrent units.
        activation: of the recurrent units: "sigmoid", "tanh" or "relu".
        layer_norm: whether norm is a layer normalisation over the D units (Ba et al. 2016).
        encoder: a module (N, C, H, W) -> (N, anything) of your own; by default the pixels are used directly.
        decoder: a module (N, D) -> (N, C, H, W) of your own; by default one linear layer. It gives
            logits (Bernoulli) or means (Gaussian), so it ends without a sigmoid.

    Raises:
        InputError: a size below 1, an unknown activation, or a decoder whose output is not of ``image_shape``.

    Source: Greff et al. 2017, section 2.3. Weights are initialised as in the authors' code (Glorot uniform).
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_size: int = 250,
        activation: str = "sigmoid",
        layer_norm: bool = False,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(image_shape, hidden_size, encoder)
        require_activation(activation)
        require_flag("layer_norm", layer_norm)
        self.activation = activation
        self.input_layer = nn.Linear(self._count_features(), hidden_size)  # U, b
        self.recurrent_layer = nn.Linear(hidden_size, hidden_size, bias=False)  # V
        self.norm: nn.Module = nn.LayerNorm(hidden_size) if layer_norm else nn.Identity()
        self._init_as_one_kernel()
        self._set_decoder(decoder)

    def _init_as_one_kernel(self) -> None:
        """Initialise U and V as one kernel [input; state] -> state (Glorot uniform), like the authors; bias 0."""
        rows = self.input_layer.in_features + self.state_size
        bound = math.sqrt(6 / (rows + self.state_size))
        nn.init.uniform_(self.input_layer.weight, -bound, bound)
        nn.init.uniform_(self.recurrent_layer.weight, -bound, bound)
        nn.init.zeros_(self.input_layer.bias)

    def next_state(self, features: Tensor, state: Tensor) -> Tensor:
        """Give theta': (N, F), (N, D) -> (N, D)."""
        units = self.input_layer(features) + self.recurrent_layer(state)
        return ACTIVATIONS[self.activation](self.norm(units))


class GatedMStep(_NetworkMStep):
    """RNN-EM with gated recurrent units, which remember longer: for objects that move.

        a = norm(U encoder(residual) + b),      c = norm(V theta + d),
        z = sigmoid(a_z + c_z),      r = sigmoid(a_r + c_r),      n = tanh(a_n + r c_n),
        theta' = z theta + (1 - z) n,      params = decoder(theta').

    a and c have 3 D numbers, D each for z, r and n; each norm is a layer normalisation over all of them.

    Args:
        image_shape: (C, H, W).
        hidden_size: D, the number of recurrent units.
        encoder: as of :class:`RecurrentMStep`.
        decoder: as of :class:`RecurrentMStep`.

    Raises:
        InputError: a size below 1, or a decoder whose output is not of ``image_shape``.

    Source: Cho et al. 2014, the form in which the reset gate r acts on V theta; layer normalisation of Ba et al. 2016.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_size: int = 64,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(image_shape, hidden_size, encoder)
        self.input_layer = nn.Linear(self._count_features(), 3 * hidden_size)  # U, b
        self.recurrent_layer = nn.Linear(hidden_size, 3 * hidden_size)  # V, d
        self.input_norm: nn.Module = nn.LayerNorm(3 * hidden_size)
        self.recurrent_norm: nn.Module = nn.LayerNorm(3 * hidden_size)
        self._set_decoder(decoder)

    def next_state(self, features: Tensor, state: Tensor) -> Tensor:
        """Give theta': (N, F), (N, D) -> (N, D)."""
        a_z, a_r, a_n = self.input_norm(self.input_layer(features)).chunk(3, 1)
        c_z, c_r, c_n = self.recurrent_norm(self.recurrent_layer(state)).chunk(3, 1)
        keep = torch.sigmoid(a_z + c_z)
        candidate = torch.tanh(a_n + torch.sigmoid(a_r + c_r) * c_n)
        return keep * state + (1 - keep) * candidate


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and its parts into evaluation mode, and restore each part's mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def _output_of(module: nn.Module, example: Tensor) -> Tensor:
    with evaluating(module):  # in training mode, batch normalisation rejects a single image
        return module(example)
