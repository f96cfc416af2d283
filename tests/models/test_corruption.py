import pytest
import torch

from nem_lightning.errors import InputError
from nem_lightning.models.corruption import BitFlip, MaskedUniform, SaltAndPepper


def test_bit_flip_flips_a_share_of_the_bits():
    image = torch.rand(10, 1, 100, 100).round()
    noisy = BitFlip(0.1)(image, torch.Generator().manual_seed(0))
    assert set(noisy.unique().tolist()) == {0.0, 1.0}
    assert abs((noisy != image).float().mean() - 0.1) < 0.01
    assert torch.equal(BitFlip(0)(image), image) and torch.equal(BitFlip(1)(image), 1 - image)


def test_masked_uniform_replaces_a_share_of_the_values():
    image = torch.full((10, 3, 60, 60), 2.0)
    noisy = MaskedUniform(0.2)(image, torch.Generator().manual_seed(0))
    replaced = noisy[noisy != 2]
    assert abs((noisy != image).float().mean() - 0.2) < 0.01
    assert replaced.min() >= 0 and replaced.max() < 1 and abs(replaced.mean() - 0.5) < 0.02
    assert torch.equal(MaskedUniform(0)(image), image)


def test_salt_and_pepper_sets_half_of_a_share_to_0_and_half_to_1():
    image = torch.full((10, 1, 60, 60), 2.0)
    noisy = SaltAndPepper(0.4)(image, torch.Generator().manual_seed(0))
    assert set(noisy.unique().tolist()) == {0, 1, 2}
    assert all(abs((noisy == value).float().mean() - 0.2) < 0.01 for value in (0, 1))
    assert torch.equal(SaltAndPepper(0)(image), image)


@pytest.mark.parametrize("corruption", [BitFlip(0.3), MaskedUniform(0.3), SaltAndPepper(0.3)])
def test_the_generator_decides(corruption):
    image = torch.rand(2, 1, 8, 8).round()
    one, same, other = (corruption(image, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("corruption", [BitFlip, MaskedUniform, SaltAndPepper])
@pytest.mark.parametrize("prob", [-0.1, 1.1])
def test_bad_probability(corruption, prob):
    with pytest.raises(InputError, match=rf"prob={prob}: must lie in \[0, 1\]"):
        corruption(prob)
