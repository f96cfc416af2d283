import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import output_layer
from torch import nn

from nem_lightning.errors import InputError
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.m_steps import GatedMStep, GradientMStep, RecurrentMStep

SHAPE = (2, 3, 4)


@given(seed=st.integers(0, 2**31), binary=st.booleans(), components=st.integers(1, 4))
def test_the_gradient_step_is_the_gradient_of_q(seed, binary, components):
    """Compares equation 4 with autograd on Q = sum gamma log P(x | f(theta))."""
    torch.manual_seed(seed)
    likelihood = Bernoulli() if binary else Gaussian(sigma=1.0)
    m_step = GradientMStep(SHAPE, hidden_size=5, step_size=0.5).double()
    image = torch.rand(2, *SHAPE, dtype=torch.float64)
    image = image.round() if binary else image
    gamma = torch.rand(2, components, 1, *SHAPE[1:], dtype=torch.float64).softmax(1)
    state = torch.randn(2, components, 5, dtype=torch.float64, requires_grad=True)
    params = m_step.decode(state)
    q = (gamma * likelihood.log_prob(image.unsqueeze(1), params)).sum()
    (gradient,) = torch.autograd.grad(q, state)
    residual = gamma * (image.unsqueeze(1) - likelihood.mean(params))
    new_state, new_params = m_step(residual, state)
    assert torch.allclose(new_state, state + 0.5 * gradient, rtol=0, atol=1e-12)
    assert torch.equal(new_params, m_step.decode(new_state))


def test_each_unit_may_have_a_step_size_of_its_own():
    m_step = GradientMStep(SHAPE, hidden_size=5, step_size_by_unit=True)
    assert m_step.step_size.shape == (5,) and m_step.step_size.unique().tolist() == [1]
    plain, residual, state = GradientMStep(SHAPE, hidden_size=5), torch.randn(2, 3, *SHAPE), torch.randn(2, 3, 5)
    plain.weight = m_step.weight
    assert torch.equal(m_step(residual, state)[0], plain(residual, state)[0])
    factors = torch.tensor([1.0, 0.0, 2.0, 3.0, 0.5])
    m_step.step_size.data = factors
    step = plain(residual, state)[0] - state
    assert torch.allclose(m_step(residual, state)[0], state + factors * step, atol=1e-6)


def test_the_step_size_is_learned_and_starts_positive():
    m_step = GradientMStep(SHAPE, hidden_size=5)
    state, _ = m_step(torch.rand(2, 3, *SHAPE), torch.zeros(2, 3, 5))
    state.sum().backward()
    assert m_step.step_size.item() > 0 and m_step.step_size.grad != 0
    for step_size in (0, -1.0):
        with pytest.raises(InputError, match=f"step_size={step_size}"):
            GradientMStep(SHAPE, step_size=step_size)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_the_recurrent_step_is_a_plain_rnn_shared_over_components(activation, layer_norm):
    m_step = RecurrentMStep(SHAPE, hidden_size=5, activation=activation, layer_norm=layer_norm)
    residual, state = torch.randn(2, 3, *SHAPE), torch.randn(2, 3, 5)
    new_state, params = m_step(residual, state)
    for b in range(2):
        for k in range(3):
            u, v, w = m_step.input_layer, m_step.recurrent_layer, output_layer(m_step)
            expected = u.weight @ residual[b, k].flatten() + u.bias + v.weight @ state[b, k]
            if layer_norm:
                expected = (expected - expected.mean()) / (expected.var(unbiased=False) + 1e-5).sqrt()
            expected = getattr(torch, activation)(expected)
            decoded = (w.weight @ expected + w.bias).view(SHAPE)
            assert torch.allclose(new_state[b, k], expected, atol=1e-6)
            assert torch.allclose(params[b, k], decoded, atol=1e-6)


def test_without_normalisation_the_gated_step_is_the_gru_of_torch():
    m_step, gru = GatedMStep(SHAPE, hidden_size=5).double(), nn.GRUCell(24, 5).double()
    m_step.input_norm = m_step.recurrent_norm = nn.Identity()
    for layer, weight, bias in (
        (m_step.input_layer, gru.weight_ih, gru.bias_ih),
        (m_step.recurrent_layer, gru.weight_hh, gru.bias_hh),
    ):
        reset, keep, candidate = (torch.cat([weight, bias.unsqueeze(1)], 1)).chunk(3)  # torch has the reset gate first
        both = torch.cat([keep, reset, candidate]).detach()
        layer.weight.data, layer.bias.data = both[:, :-1], both[:, -1]
    residual, state = torch.randn(2, 3, *SHAPE).double(), torch.randn(2, 3, 5).double()
    new_state, params = m_step(residual, state)
    expected = gru(residual.flatten(0, 1).flatten(1), state.flatten(0, 1)).unflatten(0, (2, 3))
    assert torch.allclose(new_state, expected)
    assert torch.allclose(params, m_step.decoder(expected.flatten(0, 1)).unflatten(0, (2, 3)))


def test_the_gated_step_normalises_the_input_and_the_state_apart():
    m_step = GatedMStep(SHAPE, hidden_size=5)
    residual, state = torch.randn(2, 3, *SHAPE), torch.randn(2, 3, 5)
    seen = m_step(residual, state)[0]
    m_step.input_layer.bias.data += 3.0  # the same for all 3 D numbers, so a normalisation takes it away
    assert torch.allclose(m_step(residual, state)[0], seen, atol=1e-5)
    m_step.recurrent_layer.weight.data *= 2
    m_step.recurrent_layer.bias.data *= 2
    assert torch.allclose(m_step(residual, state)[0], seen, atol=1e-3)


def test_an_encoder_and_a_decoder_of_ones_own():
    encoder = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(5, 24), nn.Unflatten(1, SHAPE), nn.Conv2d(2, 2, 3, padding=1))
    m_step = RecurrentMStep(SHAPE, hidden_size=5, encoder=encoder, decoder=decoder)
    state, params = m_step(torch.randn(2, 3, *SHAPE), torch.zeros(2, 3, 5))
    assert state.shape == (2, 3, 5) and params.shape == (2, 3, *SHAPE)
    (state.sum() + params.sum()).backward()
    assert all(parameter.grad is not None for parameter in (*encoder.parameters(), *decoder.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_size": 2.5}, "hidden_size=2.5"),
        ({"layer_norm": "no"}, "layer_norm=no: must be true or false"),
        ({"activation": "swish"}, "activation='swish': must be one of sigmoid, tanh, relu"),
        ({"image_shape": (28, 28)}, "image_shape"),
        ({"decoder": nn.Linear(250, 7)}, r"decoder: gives images of shape \(7,\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        RecurrentMStep(**{"image_shape": SHAPE, **arguments})


def test_bad_arguments_of_the_gated_step():
    with pytest.raises(InputError, match="hidden_size=0"):
        GatedMStep(SHAPE, hidden_size=0)
    with pytest.raises(InputError, match=r"decoder: gives images of shape \(7,\)"):
        GatedMStep(SHAPE, decoder=nn.Linear(64, 7))


def test_encoders_and_decoders_may_have_batch_normalisation():
    """Building an M-step changes neither the statistics nor the mode of the normalisation."""
    encoder = nn.Sequential(nn.BatchNorm2d(SHAPE[0]), nn.Flatten(), nn.Linear(24, 7), nn.BatchNorm1d(7))
    decoder = nn.Sequential(nn.Linear(5, 24), nn.BatchNorm1d(24).eval(), nn.Unflatten(1, SHAPE))
    m_step = RecurrentMStep(SHAPE, hidden_size=5, encoder=encoder, decoder=decoder)
    assert [part.training for part in (encoder, encoder[0], decoder, decoder[1])] == [True, True, True, False]
    assert encoder[0].num_batches_tracked == encoder[3].num_batches_tracked == decoder[1].num_batches_tracked == 0
    state, params = m_step(torch.randn(2, 3, *SHAPE), torch.randn(2, 3, 5))
    assert state.shape == (2, 3, 5) and params.shape == (2, 3, *SHAPE)
