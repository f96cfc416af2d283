"""Small models of Neural EM, and those of the authors' traces."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tiny import gradient_of, output_layer

from nem_lightning.models.em import NeuralEM
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import GradientMStep, RecurrentMStep

SHAPE = (1, 4, 5)


M_STEPS = {
    "RNN-EM": lambda shape, units: RecurrentMStep(shape, units),
    "RNN-EM with layer norm": lambda shape, units: RecurrentMStep(shape, units, layer_norm=True),
    "N-EM": GradientMStep,
    "N-EM with a step size for each unit": lambda shape, units: GradientMStep(shape, units, step_size_by_unit=True),
}


def fast_model(
    m_step="RNN-EM with layer norm",
    scale=1.0,
    dtype=torch.float64,
    weights: str | Sequence[float] = "last",
    **arguments,
) -> NeuralEM:
    """Give a model that the fast path takes. Normal noise is added to its weights."""
    loss = NeuralEMLoss(Bernoulli(), step_weights=weights)
    em = NeuralEM(M_STEPS[m_step](SHAPE, 6), Bernoulli(), loss, **arguments).to(dtype)
    with torch.no_grad():
        for parameter in em.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return em


def binary(*shape: int, dtype=torch.float64) -> torch.Tensor:
    """Random pixels of 0 and 1."""
    return torch.rand(*shape).round().to(dtype)


def authors_model(name: str, trace) -> tuple[NeuralEM, dict[str, Callable[[], torch.Tensor]]]:
    """Give the model with a trace's weights, and functions that give its gradients, by the trace's names."""
    weights = {
        key: torch.tensor(np.asarray(trace[key]), dtype=torch.float64) for key in trace if key.startswith("var/")
    }
    gradients: dict[str, Callable[[], torch.Tensor]]
    if name == "n_em":
        m_step = GradientMStep((1, 28, 28)).double()
        m_step.weight.data, m_step.step_size.data = weights["var/weights"], weights["var/lr"].squeeze()
        gradients = {"weights": lambda: gradient_of(m_step.weight), "lr": lambda: gradient_of(m_step.step_size)}
    else:
        m_step = RecurrentMStep((1, 28, 28)).double()
        layers = m_step.input_layer, m_step.recurrent_layer
        output, kernel = output_layer(m_step), weights["var/kernel"]
        m_step.input_layer.weight.data, m_step.recurrent_layer.weight.data = kernel[:784].T, kernel[784:].T
        m_step.input_layer.bias.data = weights["var/bias"]
        output.weight.data = weights["var/output_weights"].T
        output.bias.data = weights["var/output_biases"]
        gradients = {
            "kernel": lambda: torch.cat([gradient_of(layer.weight).T for layer in layers]),
            "bias": lambda: gradient_of(m_step.input_layer.bias),
            "output_weights": lambda: gradient_of(output.weight).T,
            "output_biases": lambda: gradient_of(output.bias),
        }
    return NeuralEM(m_step, Bernoulli()), gradients


def small_model(m_step: str, binary: bool, shape=(2, 3, 4), **arguments) -> NeuralEM:
    """A model of double precision."""
    likelihood = Bernoulli() if binary else Gaussian(sigma=0.5)
    kind = {"gradient": GradientMStep, "recurrent": RecurrentMStep}[m_step]
    return NeuralEM(kind(shape, hidden_size=3).double(), likelihood, **arguments)


def images(count: int, binary: bool, shape=(2, 3, 4)) -> torch.Tensor:
    """(B, C, H, W), random pixels."""
    image = torch.rand(count, *shape, dtype=torch.float64)
    return image.round() if binary else image


def sequences(count: int, num_frames: int, binary: bool, shape=(2, 3, 4)) -> torch.Tensor:
    """(B, F, C, H, W), random pixels; stills if there is one frame."""
    return images(count * num_frames, binary, shape).unflatten(0, (count, num_frames))
