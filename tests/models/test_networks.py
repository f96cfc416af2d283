"""Encoders and decoders."""

from typing import Any

import pytest
import torch
from torch import nn

from nem_lightning.errors import InputError
from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.models.networks import (
    ConstantDecoder,
    ConvDecoder,
    ConvEncoder,
    DenseDecoder,
    DenseEncoder,
    DoublingConv2d,
    SpriteDecoder,
)


@pytest.mark.parametrize(("size", "channels", "state"), [(28, [32, 64], 100), (24, [32, 64, 128], 250)])
def test_the_published_networks(size, channels, state):
    shape = (1, size, size)
    encoder = ConvEncoder(shape, channels, normalize_input=size == 24)
    decoder = ConvDecoder(shape, state, channels[::-1])
    m_step = RecurrentMStep(shape, state, layer_norm=True, encoder=encoder, decoder=decoder)
    residual = torch.rand(2, 3, *shape)
    new, params = m_step(residual, torch.zeros(2, 3, state))
    assert new.shape == (2, 3, state) and params.shape == (2, 3, *shape)
    assert encoder(residual[:, 0]).shape == (2, 512)
    before_convolutions = (size // 2 ** len(channels)) ** 2 * channels[-1]
    assert any(module.out_features == before_convolutions for module in decoder if isinstance(module, torch.nn.Linear))
    assert params.min() < 0  # the last layer is linear


def test_the_input_is_normalised_image_by_image():
    torch.manual_seed(0)
    encoder = ConvEncoder((1, 8, 8), [4], 5, normalize_input=True)
    image = torch.rand(2, 1, 8, 8)
    assert torch.allclose(encoder(image), encoder(3 * image + 1), atol=1e-4)
    image[1] = 0
    assert encoder(image).isfinite().all()


def test_dense_networks():
    shape = (3, 6, 5)
    encoder, decoder = DenseEncoder(shape, 7), DenseDecoder(shape, 4, features=8)
    m_step = RecurrentMStep(shape, 4, encoder=encoder, decoder=decoder)
    new, params = m_step(torch.rand(2, 3, *shape), torch.zeros(2, 3, 4))
    assert new.shape == (2, 3, 4) and params.shape == (2, 3, *shape) and params.min() < 0
    assert m_step.input_layer.in_features == 7


def test_a_constant_component_has_one_value_a_channel():
    decoder, state = ConstantDecoder((2, 3, 4), 5), torch.randn(6, 5)
    found = decoder(state)
    assert found.shape == (6, 2, 3, 4)
    values = state @ decoder.weight.T + decoder.bias
    assert torch.allclose(found, values.view(6, 2, 1, 1).expand(-1, -1, 3, 4), atol=1e-6)
    with pytest.raises(InputError, match="state_size=0: must be an integer of at least 1"):
        ConstantDecoder((2, 3, 4), 0)


@pytest.mark.parametrize("binary", [True, False])
def test_a_sprite_is_the_mean_of_its_patch_over_all_places(binary):
    torch.manual_seed(0)
    decoder = SpriteDecoder((2, 7, 6), 4, patch_size=3, features=5, binary=binary)
    nn.init.normal_(decoder.place.weight, std=3)
    state = torch.randn(3, 4)
    features = decoder.features(state)
    rows, columns = (part.softmax(1) for part in decoder.place(features).split([5, 4], 1))
    patch = decoder.patch(features).sigmoid().view(3, 2, 3, 3)
    mean = torch.zeros(3, 2, 7, 6)
    for i in range(5):
        for j in range(4):
            mean[:, :, i : i + 3, j : j + 3] += (rows[:, i] * columns[:, j]).view(3, 1, 1, 1) * patch
    found = decoder(state)
    assert torch.allclose(found.sigmoid() if binary else found, mean, atol=2e-4 if binary else 1e-6)
    assert found.isfinite().all()
    assert decoder.double()(state.double()).dtype == torch.float64


def test_a_sprite_whose_place_is_certain_is_finite_in_half_precision():
    decoder = SpriteDecoder((1, 8, 8), 4, patch_size=3)
    decoder.place.weight.data *= 1000
    decoder.patch.bias.data += 100.0
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder(torch.randn(200, 4))
    assert logits.isfinite().all() and logits.max() > 9  # the patch is white
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_bad_sprites():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"patch_size": 9}, r"patch_size=9: must be at most the height and the width of image_shape=\[1, 8, 10\]"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"features": 0}, "features=0"),
        ({"binary": "no"}, "binary=no: must be true or false"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message):
            SpriteDecoder((1, 8, 10), 4, **given)


def test_bad_sizes():
    for network in (lambda **given: ConvEncoder(**given), lambda **given: ConvDecoder(state_size=4, **given)):
        with pytest.raises(InputError, match=r"image_shape=\[1, 26, 28\]: height and width must be multiples of 4"):
            network(image_shape=[1, 26, 28], channels=[2, 3])
        with pytest.raises(InputError, match="channels"):
            network(image_shape=[1, 28, 28], channels=[])
        with pytest.raises(InputError, match="features=0"):
            network(image_shape=[1, 28, 28], channels=[2], features=0)


def test_a_doubling_convolution_is_up_sampling_then_a_convolution():
    torch.manual_seed(0)
    doubling = DoublingConv2d(3, 2).double()
    image = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    doubled = nn.functional.pad(nn.functional.interpolate(image, scale_factor=2), (1, 2, 1, 2))
    expected = nn.functional.conv2d(doubled, doubling.weight, doubling.bias)
    weights = [image, doubling.weight, doubling.bias]
    slope = torch.randn_like(expected)
    for found, wanted in zip(
        (doubling(image), *torch.autograd.grad(doubling(image), weights, slope)),
        (expected, *torch.autograd.grad(expected, weights, slope)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)
