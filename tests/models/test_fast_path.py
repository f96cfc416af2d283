"""Compares the fast path with the loop, which defines the right results."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_models import M_STEPS, SHAPE, authors_model, binary, fast_model
from tiny import TinyImages, gradient_of, m_step_of, output_layer, tiny_module, tiny_trainer

from nem_lightning.models.corruption import BitFlip
from nem_lightning.models.em import Iterate, NeuralEM
from nem_lightning.models.fast_path import FastLoss, FastPath
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.losses import NeuralEMLoss

every_m_step = pytest.mark.parametrize("m_step", M_STEPS)


def by_the_loop(em, image, corrupted, *, detach, generator) -> FastLoss:
    start = em.start(image, em.num_components, generator)
    frames = image.unsqueeze(1)
    trajectory = list(em.steps(start, corrupted, frames, em.num_steps, detach=detach))
    return FastLoss(em.loss(frames, trajectory), trajectory[-1].state, trajectory[-1].params)


def assert_same(em, image, corrupted, tolerance: float, path: FastPath | None = None) -> None:
    path = path or FastPath()
    corrupted = image.unsqueeze(1) if corrupted is None else corrupted
    assert path.why_not(em, image.unsqueeze(1), corrupted) is None
    values, gradients = values_and_gradients(by_the_loop, em, image, corrupted)
    fast_values, fast_gradients = values_and_gradients(path, em, image, corrupted)
    assert torch.allclose(values, fast_values, rtol=tolerance, atol=tolerance)
    largest = max(gradient.abs().max() for gradient in gradients)
    for gradient, fast in zip(gradients, fast_gradients, strict=True):
        assert (gradient - fast).abs().max() <= 10 * tolerance * max(largest, 1)


def values_and_gradients(compute, em, image, corrupted) -> tuple[torch.Tensor, list[torch.Tensor]]:
    em.zero_grad()
    detach, draws = not em.differentiate_responsibilities, torch.Generator().manual_seed(7)
    result = compute(em, image, corrupted, detach=detach, generator=draws)
    (3 * result.total).backward()
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in em.parameters()]
    return torch.cat([value.flatten() for value in result]).detach(), gradients


def fast(em, image, path: FastPath | None = None, seed: int = 1) -> FastLoss:
    """Run the fast path on clean images."""
    return (path or FastPath())(
        em, image, image.unsqueeze(1), detach=False, generator=torch.Generator().manual_seed(seed)
    )


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    components=st.integers(1, 4),
    steps=st.integers(1, 4),
    m_step=st.sampled_from(sorted(M_STEPS)),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    smoothing=st.sampled_from([1e-20, 1e-6, 0.1]),
    initial_mean=st.floats(-1, 1),
    differentiate=st.booleans(),
    init=st.sampled_from(["noise", "bright_regions"]),
    noise_by_step=st.booleans(),
    weights=st.one_of(
        st.sampled_from(["last", "all"]), st.lists(st.sampled_from([0.0, 0.3, 2.0]), min_size=4, max_size=4)
    ),
)
@example(2, 3, 2, 4, "RNN-EM with layer norm", 20.0, 1e-20, 0.2734375, True, "noise", False, "last")  # logits beyond 20
@example(0, 1, 1, 1, "N-EM", 0.1, 1e-6, 0.0, True, "noise", False, "last")  # (K, B) and (B, K) are the same memory
@settings(max_examples=200)
def test_it_is_the_loop(
    seed,
    batch,
    components,
    steps,
    m_step,
    scale,
    smoothing,
    initial_mean,
    differentiate,
    init,
    noise_by_step,
    weights,
):
    torch.manual_seed(seed)
    if not isinstance(weights, str):
        weights = weights[:steps] if any(weights[:steps]) else "last"
    em = fast_model(
        m_step,
        scale,
        weights=weights,
        num_components=components,
        num_steps=steps,
        smoothing=smoothing,
        initial_mean=initial_mean,
        differentiate_responsibilities=differentiate,
        init=init,
    )
    corrupted = torch.rand(batch, steps + 1 if noise_by_step else 1, *SHAPE, dtype=torch.float64)
    assert_same(em, binary(batch, *SHAPE), corrupted, 1e-9)


@every_m_step
@pytest.mark.parametrize("differentiate", [True, False])
def test_it_is_the_loop_at_its_real_size_in_single_precision(differentiate, m_step):
    torch.manual_seed(0)
    loss = NeuralEMLoss(Bernoulli(), step_weights="all")
    em = NeuralEM(M_STEPS[m_step]((1, 28, 28), 250), Bernoulli(), loss, differentiate_responsibilities=differentiate)
    assert (em.num_components, em.num_steps) == (3, 10)
    assert_same(em, binary(8, 1, 28, 28, dtype=torch.float32), None, 1e-5)


@pytest.mark.parametrize("name", ["n_em", "rnn_em"])
def test_it_reproduces_the_authors_trace(name, monkeypatch):
    """Compares the loss of the last step, and its gradients. Of these the trace keeps one entry in 97."""
    trace = np.load(ROOT / "tests" / "reference" / f"{name}.npz")
    em, gradients = authors_model(name, trace)
    image, gamma = (torch.tensor(trace[key], dtype=torch.float64).movedim(-1, -3) for key in ("image", "gamma0"))
    path = FastPath()
    assert path.why_not(em, image.unsqueeze(1), image.unsqueeze(1)) is None
    monkeypatch.setattr(em, "first_responsibilities", lambda *arguments: gamma)
    result = fast(em, image, path)
    result.total.backward()
    last = em.loss.of_step(image, em.explain(image, result.state, result.params))
    assert math.isclose(result.total.item(), last.total.item(), rel_tol=1e-9)
    for key, value in zip(("total_loss", "intra_loss", "inter_loss"), last, strict=True):
        assert math.isclose(value.item(), trace[key][-1], rel_tol=1e-6)
    for key, gradient in gradients.items():
        expected = torch.tensor(np.asarray(trace[f"grad/{key}"]), dtype=torch.float64).flatten()
        assert (gradient().flatten()[::97] - expected).abs().max() <= 1e-5 * expected.abs().max(), key


@every_m_step
@pytest.mark.parametrize("weights", ["last", "all", [0.0, 1.0, 0.0]])
def test_its_gradients_agree_with_finite_differences(weights, m_step):
    torch.manual_seed(0)
    em = fast_model(m_step, scale=0.3, weights=weights, num_components=2, num_steps=3)
    image, path = binary(2, *SHAPE), FastPath()
    names, parameters = zip(*em.named_parameters(), strict=True)

    class Objective(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.em = em

        def forward(self) -> torch.Tensor:
            return fast(em, image, path, seed=2).total

    def objective(*values: torch.Tensor) -> torch.Tensor:
        of_em = {f"em.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Objective(), of_em, ())

    assert torch.autograd.gradcheck(objective, parameters, atol=1e-6)


@every_m_step
def test_images_of_another_number_may_follow(m_step):
    torch.manual_seed(0)
    em, path = fast_model(m_step, weights="all", num_steps=3), FastPath()
    for batch in (3, 1, 3):
        assert_same(em, binary(batch, *SHAPE), None, 1e-9, path)


def test_another_m_step_may_follow():
    torch.manual_seed(0)
    path = FastPath()
    for m_step in ("N-EM", "RNN-EM", "N-EM"):
        assert_same(fast_model(m_step, num_components=2, num_steps=3), binary(2, *SHAPE), None, 1e-9, path)


@every_m_step
def test_a_second_batch_leaves_the_first_ones_gradients_alone(m_step):
    torch.manual_seed(0)
    em, path = fast_model(m_step, num_components=2, num_steps=3), FastPath()
    one, other = binary(2, *SHAPE), binary(2, *SHAPE)

    def losses(*images: torch.Tensor) -> list[torch.Tensor]:
        return [fast(em, image, path).total for image in images]

    (first,) = losses(one)
    expected = torch.autograd.grad(first, list(em.parameters()))
    first, _ = losses(one, other)
    assert all(map(torch.equal, expected, torch.autograd.grad(first, list(em.parameters()))))


def test_a_copy_has_memory_of_its_own():
    path = FastPath()
    fast(fast_model(num_components=2, num_steps=2), binary(2, *SHAPE), path)
    for other in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert path._unrolled is not None and other._unrolled is None


@every_m_step
def test_a_second_batch_leaves_what_the_first_one_gave_alone(m_step):
    """With one image and one component, (K, B) and (B, K) are the same memory."""
    em, path = fast_model(m_step, num_components=1, num_steps=2), FastPath()
    first = fast(em, torch.ones(1, *SHAPE).double(), path)
    kept = [value.detach().clone() for value in first]
    fast(em, torch.zeros(1, *SHAPE).double(), path)
    assert all(map(torch.equal, first, kept))


def test_the_order_in_which_weights_were_registered_does_not_matter():
    """If a parametrization is removed, or a layer pruned, the weight is registered again, after the bias."""
    torch.manual_seed(0)
    em = fast_model(weights="all", num_components=2, num_steps=3)
    m_step = m_step_of(em)
    for layer in (m_step.input_layer, output_layer(m_step), m_step.norm):
        weight = layer.get_parameter("weight")
        del layer.weight
        layer.register_parameter("weight", weight)
    assert_same(em, binary(2, *SHAPE), None, 1e-9)


@every_m_step
def test_frozen_weights_get_no_gradient(m_step):
    em = fast_model(m_step, num_components=2, num_steps=2)
    next(em.parameters()).requires_grad_(False)
    fast(em, binary(2, *SHAPE)).total.backward()
    assert all((p.grad is not None) == p.requires_grad for p in em.parameters())


@every_m_step
def test_second_derivatives_are_refused(m_step):
    """The gradients of the fast path have no gradients themselves, so they would silently count as constants."""
    em = fast_model(m_step, num_components=2, num_steps=2)
    total = fast(em, binary(2, *SHAPE)).total
    with pytest.raises(RuntimeError, match="the fast path has no second derivatives"):
        torch.autograd.grad(total, list(em.parameters()), create_graph=True)
    torch.autograd.grad(total, list(em.parameters()))


def test_many_components_and_steps():
    """There are more logarithms than fit into one product: near logit 0, 200 factors give 0 in single precision."""
    torch.manual_seed(0)
    weights = [1.0] * 12 + [0.5] * 5
    em = fast_model(scale=0.1, dtype=torch.float32, weights=weights, num_components=17, num_steps=17)
    assert_same(em, binary(2, *SHAPE, dtype=torch.float32), None, 1e-4)


@pytest.mark.parametrize("far", [200.0, -200.0])
def test_logits_far_out_give_finite_gradients(far):
    em = fast_model(dtype=torch.float32, weights="all", num_steps=3)
    output_layer(m_step_of(em)).bias.data.fill_(far)
    assert_same(em, binary(2, *SHAPE, dtype=torch.float32), None, 1e-4)


@every_m_step
@pytest.mark.parametrize(
    ("differentiate", "detached_epochs", "epoch", "noise_by_step"),
    [
        *((True, 0, 0, False), (False, 0, 0, False), (True, 2, 1, False), (True, 2, 2, False), (False, 2, 2, False)),
        *((True, 0, 0, True), (False, 0, 0, True)),
    ],
)
def test_the_model_gives_the_same_loss_and_gradients_either_way(
    m_step, differentiate, detached_epochs, epoch, noise_by_step
):
    """The images have noise, and the grouping after the last step is compared, too.

    No gradients flow through gamma in the first ``detached_epochs`` epochs.
    """
    torch.manual_seed(0)
    settings = {"differentiate_responsibilities": differentiate, "noise_by_step": noise_by_step}
    settings["detached_epochs"] = detached_epochs
    em, frames = fast_model(m_step, weights="all", num_steps=3, **settings), binary(2, 1, *SHAPE)
    em.corruption = BitFlip(0.3)
    found = []
    for em.fast in (True, False):
        em.zero_grad()
        loss = em.training_loss(frames, epoch=epoch, generator=torch.Generator().manual_seed(0))
        loss.total.backward()
        gradients = [gradient_of(parameter).clone() for parameter in em.parameters()]
        last = loss.last()
        assert isinstance(last, Iterate)
        found.append([loss.total.detach(), last.responsibilities.detach(), last.mean.detach(), *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)
    em.zero_grad()
    em.detached_epochs, em.differentiate_responsibilities = 0, differentiate and epoch >= detached_epochs
    em.training_loss(frames, generator=torch.Generator().manual_seed(0)).total.backward()
    for parameter, gradient in zip(em.parameters(), found[0][3:], strict=True):
        assert torch.allclose(gradient_of(parameter), gradient, rtol=1e-9, atol=1e-9)


def test_gradients_through_gamma_matter():
    """If they did not, the test above would compare equal gradients in all its cases."""
    torch.manual_seed(0)
    em, frames = fast_model(weights="all", num_steps=3, detached_epochs=1), binary(2, 1, *SHAPE)
    gradients = []
    for epoch in (0, 1):
        em.zero_grad()
        em.training_loss(frames, epoch=epoch, generator=torch.Generator().manual_seed(0)).total.backward()
        gradients.append(torch.cat([gradient_of(parameter).flatten() for parameter in em.parameters()]))
    assert not torch.allclose(*gradients, rtol=1e-3)


def test_training_takes_it_and_ends_as_by_the_loop(tmp_path, monkeypatch):
    ended, calls = [], []
    original = FastPath.__call__
    monkeypatch.setattr(FastPath, "__call__", lambda *a, **k: calls.append(1) or original(*a, **k))
    for setting in ("auto", False):
        module = tiny_module(fast=setting)
        tiny_trainer(tmp_path / str(setting), enable_checkpointing=False).fit(module, TinyImages())
        ended.append(module.model.state_dict())
    assert len(calls) == 5
    assert all(torch.allclose(ended[0][name], ended[1][name], atol=1e-5) for name in ended[0])
