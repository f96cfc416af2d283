"""Compares the recurrence with the authors' traces, finite differences, and a loop written out here."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from small_models import authors_model, images, sequences, small_model
from tiny import gradient_of, m_step_of, output_layer

from nem_lightning.errors import InputError
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.grouping import Grouping
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import GradientMStep

STEPS = 10


def assert_reproduces(name: str, path: Path, every: int, every_gradient: int) -> None:
    """Compare with the entries that a trace keeps: one in ``every``, and one in ``every_gradient`` of gradients."""
    trace = np.load(path)
    em, gradients = authors_model(name, trace)
    loss = NeuralEMLoss(Bernoulli())
    image = torch.tensor(trace["image"], dtype=torch.float64).movedim(-1, -3)
    gamma = torch.tensor(trace["gamma0"], dtype=torch.float64).movedim(-1, -3).requires_grad_()
    iterate = dataclasses.replace(em.start(image, 3), responsibilities=gamma)
    means, responsibilities, states, losses = [], [], [], []
    for _ in range(STEPS):
        iterate = em.step(iterate, image, image)
        means.append(iterate.mean.movedim(-3, -1))
        responsibilities.append(iterate.responsibilities.movedim(-3, -1))
        states.append(iterate.state.flatten(0, 1))
        losses.append(loss.of_step(image, iterate))
    losses[-1].total.backward()

    def assert_close(computed: torch.Tensor, key: str, one_in: int, tolerance: float) -> None:
        """``tolerance`` is relative to the largest entry."""
        expected = torch.tensor(np.asarray(trace[key]), dtype=torch.float64).flatten()
        computed = computed.detach().flatten()[::one_in]
        assert computed.shape == expected.shape
        assert (computed - expected).abs().max() <= tolerance * expected.abs().max(), key

    assert_close(torch.stack(means), "preds", every, 1e-6)
    assert_close(torch.stack(responsibilities), "gammas", every, 1e-6)
    assert_close(torch.stack(states), "hidden", every, 1e-6)
    for key, values in zip(("total_loss", "intra_loss", "inter_loss"), zip(*losses, strict=True), strict=True):
        assert_close(torch.stack(values), key, 1, 1e-6)
    assert_close(gradient_of(gamma).movedim(-3, -1), "grad_gamma0", every, 1e-5)
    for key, gradient in gradients.items():
        assert_close(gradient(), f"grad/{key}", every_gradient, 1e-5)


@pytest.mark.parametrize("name", ["n_em", "rnn_em"])
def test_it_reproduces_the_authors_traces(name):
    assert_reproduces(name, ROOT / "tests" / "reference" / f"{name}.npz", every=7, every_gradient=97)


@pytest.mark.parametrize("name", ["n_em", "rnn_em"])
def test_it_reproduces_the_authors_full_traces(name, full_traces):
    assert_reproduces(name, full_traces / f"{name}_bernoulli.npz", every=1, every_gradient=1)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.05])
def test_one_step_is_the_plain_loop(binary, smoothing):
    """The loop takes every pixel, channel and component in turn, with nothing in parallel."""
    torch.manual_seed(0)
    em = small_model("recurrent", binary, smoothing=smoothing, initial_mean=0.2)
    layer, output_of = m_step_of(em).input_layer, output_layer(m_step_of(em))
    image, corrupted = images(2, binary), images(2, binary)
    start = em.start(image, 3, torch.Generator().manual_seed(1))
    step = em.step(start, corrupted, image)
    gamma0 = em.start(image, 3, torch.Generator().manual_seed(1)).responsibilities
    assert torch.equal(start.state, torch.zeros(2, 3, 3, dtype=torch.float64)) and (start.mean == 0.2).all()
    for b in range(2):
        mu = []
        for k in range(3):
            residual = gamma0[b, k] * (corrupted[b] - 0.2)
            theta = torch.sigmoid(layer.weight @ residual.flatten() + layer.bias)
            output = (output_of.weight @ theta + output_of.bias).view(2, 3, 4)
            mu.append(output.sigmoid() if binary else output)
        for h in range(3):
            for w in range(4):
                probability = []
                for k in range(3):
                    p = 1.0
                    for c in range(2):
                        x, m = image[b, c, h, w].item(), mu[k][c, h, w].item()
                        density = math.exp(-((x - m) ** 2) / (2 * 0.5**2)) / (0.5 * math.sqrt(2 * math.pi))
                        p *= (m if x == 1 else 1 - m) if binary else density
                    probability.append(p + smoothing)
                expected = torch.tensor(probability, dtype=torch.float64) / sum(probability)
                assert torch.allclose(step.responsibilities[b, :, 0, h, w], expected, atol=1e-10)
        assert torch.allclose(step.mean[b], torch.stack(mu), atol=1e-12)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("m_step", "num_frames"), [("gradient", 1), ("recurrent", 1), ("recurrent", 4)])
def test_gradients_agree_with_finite_differences(m_step, num_frames, binary):
    torch.manual_seed(0)
    em = small_model(m_step, binary)
    loss = NeuralEMLoss(em.likelihood, prior=0.1, prior_weight=0.7, step_weights="all")
    frames, corrupted = sequences(2, num_frames, binary), sequences(2, num_frames, binary)
    names, parameters = zip(*em.named_parameters(), strict=True)

    class Objective(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.em = em

        def forward(self) -> torch.Tensor:
            start = em.start(frames[:, 0], 3, torch.Generator().manual_seed(2))
            return loss(frames, list(em.steps(start, corrupted, frames, 3)))

    def objective(*values: torch.Tensor) -> torch.Tensor:
        of_em = {f"em.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Objective(), of_em, ())

    assert torch.autograd.gradcheck(objective, parameters, atol=1e-6)


@given(
    seed=st.integers(0, 2**31),
    binary=st.booleans(),
    components=st.integers(1, 4),
    step_size=st.floats(1e-6, 1e-3),
)
def test_a_small_enough_n_em_step_never_lowers_the_log_likelihood(seed, binary, components, step_size):
    """Generalised EM guarantees this."""
    torch.manual_seed(seed)
    m_step = GradientMStep((2, 3, 4), 3, step_size).double()
    em = NeuralEM(m_step, Bernoulli() if binary else Gaussian(1.0), smoothing=0)
    m_step.weight.data *= 3
    image = images(3, binary)
    iterate = em.start(image, components)
    state = torch.randn_like(iterate.state)
    params = m_step.decode(state)
    iterate = em.explain(image, state, params)
    for _ in range(3):
        before = em.log_likelihood(image, iterate.params)
        iterate = em.step(iterate, image, image)
        assert (em.log_likelihood(image, iterate.params) >= before - 1e-10).all()


@given(seed=st.integers(0, 2**31), components=st.integers(1, 5), binary=st.booleans(), smoothing=st.floats(0, 1))
def test_responsibilities_are_distributions_and_components_are_exchangeable(seed, components, binary, smoothing):
    torch.manual_seed(seed)
    em = small_model("recurrent", binary, smoothing=smoothing)
    image = images(2, binary)
    start = em.start(image, components)
    order = torch.randperm(components)
    swapped = dataclasses.replace(start, responsibilities=start.responsibilities[:, order])
    one, other = em.step(start, image, image), em.step(swapped, image, image)
    for iterate in (start, one):
        assert torch.allclose(iterate.responsibilities.sum(1), torch.ones((), dtype=torch.float64))
    assert torch.allclose(other.responsibilities, one.responsibilities[:, order])
    assert torch.allclose(other.mean, one.mean[:, order])


def test_responsibilities_start_as_normalised_half_normals():
    em = small_model("recurrent", True, shape=(1, 60, 60))
    gamma = em.start(torch.zeros(20, 1, 60, 60), 3).responsibilities
    noise = torch.randn(72_000, 3).abs()
    expected = (noise / noise.sum(1, keepdim=True)).var(0).mean()
    assert torch.allclose(gamma.var((0, 2, 3, 4)).mean(), expected, rtol=0.02)
    assert torch.allclose(gamma.mean((0, 2, 3, 4)), torch.tensor(1 / 3), rtol=0.01)


def test_one_component_takes_every_pixel():
    em = small_model("gradient", True)
    trajectory = em(sequences(2, 1, True), num_components=1, num_steps=2)
    assert all((iterate.responsibilities == 1).all() for iterate in trajectory)


def test_extreme_means_give_finite_responsibilities_without_smoothing():
    em = small_model("recurrent", False, smoothing=0.0)
    params = torch.tensor([1e3, 2e3], dtype=torch.float64).view(1, 2, 1, 1, 1).expand(1, 2, 2, 3, 4)
    gamma = em.e_step(images(1, False), params)
    assert gamma.isfinite().all() and (gamma[:, 0] == 1).all()


def test_no_gradient_flows_through_responsibilities_when_asked():
    torch.manual_seed(0)
    em = small_model("recurrent", True, differentiate_responsibilities=False)
    trajectory = em(sequences(2, 1, True), num_steps=2)
    assert not any(iterate.responsibilities.requires_grad for iterate in trajectory)
    assert trajectory[-1].mean.requires_grad


def test_noise_reaches_the_m_step_only():
    em = small_model("recurrent", True)
    image = images(2, True)
    start = em.start(image, 3)
    clean, noisy = em.step(start, image, image), em.step(start, 1 - image, image)
    assert not torch.allclose(clean.params, noisy.params)
    assert torch.equal(noisy.responsibilities, em.e_step(image, noisy.params))


@pytest.mark.parametrize("binary", [True, False])
def test_the_log_likelihood_is_of_the_mixture(binary):
    torch.manual_seed(0)
    em = small_model("recurrent", binary)
    image = images(2, binary)
    params = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64)
    mixture = em.likelihood.log_prob(image.unsqueeze(1), params).exp().mean(1).log().sum((1, 2, 3))
    assert torch.allclose(em.log_likelihood(image, params), mixture)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 0}, "num_components=0: must be an integer of at least 1"),
        ({"num_steps": 0}, "num_steps=0: must be an integer of at least 1"),
        ({"num_steps": 1.5}, "num_steps=1.5: must be an integer"),
        ({"num_starts": 0}, "num_starts=0: must be an integer of at least 1"),
    ],
)
def test_bad_k_t_and_starts(arguments, message):
    """They are refused when the model is built, and when it is called."""
    with pytest.raises(InputError, match=message):
        small_model("recurrent", True, **arguments)
    with pytest.raises(InputError, match=message):
        small_model("recurrent", True).groupings(sequences(2, 1, True), **arguments)


def test_bad_image_shape_and_smoothing():
    em = small_model("recurrent", True)
    for frames in (images(2, True), sequences(2, 1, True, (1, 3, 4))):
        shape = re.escape(str(tuple(frames.shape)))
        with pytest.raises(InputError, match=rf"frames have shape {shape}: must be \(batch, frames, \*\(2, 3, 4\)\)"):
            em(frames)
        with pytest.raises(InputError, match=rf"frames have shape {shape}"):
            em.training_loss(frames)
    with pytest.raises(InputError, match=r"smoothing=0.1: swamps the likelihood, whose density is at most 0.16"):
        NeuralEM(GradientMStep((2, 3, 4), 2), Gaussian(1.0), smoothing=0.1).check_images((2, 3, 4), False)
    with pytest.raises(InputError, match=r"smoothing=0.1: swamps the likelihood"):  # also of pixels of 0 and 1
        NeuralEM(GradientMStep((2, 3, 4), 2), Gaussian(1.0), smoothing=0.1).check_images((2, 3, 4), True)
    NeuralEM(GradientMStep((2, 3, 4), 2), Gaussian(1.0), smoothing=1e-3).check_images((2, 3, 4), False)
    with pytest.raises(InputError, match="smoothing=-1"):
        small_model("recurrent", True, smoothing=-1)
    with pytest.raises(InputError, match="differentiate_responsibilities=no: must be true or false"):
        small_model("recurrent", True, differentiate_responsibilities="no")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "kmeans"}, "init='kmeans': must be one of noise, bright_regions"),
        ({"detached_epochs": -1}, "detached_epochs=-1: must be an integer of at least 0"),
        ({"initial_mean": "black"}, "initial_mean=black: must be a number"),
        ({"fast": "yes"}, "fast=yes: must be auto, true or false"),
        (
            {"loss": NeuralEMLoss(Gaussian())},
            "loss.likelihood: is Gaussian, but likelihood Bernoulli; must be the same",
        ),
        (
            {"loss": NeuralEMLoss(Bernoulli(), step_weights=[1, 2])},
            "loss.step_weights: has 2 weights, must have one for each of the 10 steps",
        ),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(InputError, match=message):
        small_model("recurrent", True, **arguments)


def test_it_reports_equation_5_and_the_log_likelihood():
    torch.manual_seed(0)
    em, image = small_model("recurrent", True), images(2, True)
    last = em(image.unsqueeze(1), num_steps=2)[-1]
    found, (total, intra, inter) = em.report(image, last), em.loss.of_step(image, last)
    assert found.keys() == em.headings.keys()
    expected = {"loss": total, "loss_intra": intra, "loss_inter": inter}
    expected["log_likelihood"] = em.log_likelihood(image, last.params).mean()
    mu, x = last.mean, image.unsqueeze(1)
    by_component = (x * mu.log() + (1 - x) * (1 - mu).log()).sum(2)  # (B, K, H, W)
    expected["upper_bound"] = -by_component.max(1)[0].sum() / 2
    assert all(torch.allclose(found[name], value, rtol=1e-6) for name, value in expected.items())
    with pytest.raises(TypeError, match="Grouping: NeuralEM reports on its own iterates"):
        em.report(image, Grouping(last.responsibilities, last.mean))
