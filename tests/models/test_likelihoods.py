import pytest
import torch
from tiny import gradient_of
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal, kl_divergence

from nem_lightning.errors import InputError
from nem_lightning.models.likelihoods import Bernoulli, Gaussian

B, K, C, H, W = 2, 3, 2, 4, 5


@pytest.fixture
def params() -> torch.Tensor:
    return 3 * torch.randn(B, K, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_bernoulli_agrees_with_torch_and_channels_add_up(params):
    image = torch.rand(B, 1, C, H, W, dtype=torch.float64).round()
    expected = TorchBernoulli(logits=params).log_prob(image.expand_as(params)).sum(2, keepdim=True)
    assert torch.allclose(Bernoulli().log_prob(image, params), expected, rtol=0, atol=1e-12)
    assert torch.allclose(Bernoulli().prob(image, params), expected.exp(), rtol=1e-12, atol=0)
    assert torch.allclose(Bernoulli().mean(params), TorchBernoulli(logits=params).mean)


@pytest.mark.parametrize("prior", [0.0, 0.2, 1.0])
def test_bernoulli_kl_agrees_with_torch(params, prior):
    expected = kl_divergence(
        TorchBernoulli(probs=torch.tensor(prior, dtype=torch.float64)), TorchBernoulli(logits=params)
    ).sum(2, keepdim=True)
    assert torch.allclose(Bernoulli().kl_from_prior(prior, params), expected, rtol=0, atol=1e-6)


def test_bernoulli_is_exact_in_double_precision():
    params = torch.tensor([21.0, 30.0], dtype=torch.float64).view(1, 2, 1, 1, 1)
    log_prob = Bernoulli().log_prob(torch.ones_like(params), params)  # log(1 + e^-l)
    assert torch.allclose(log_prob, -torch.exp(-params), rtol=0, atol=1e-14)


def test_bernoulli_is_finite_for_extreme_logits():
    params, bright = torch.tensor([-1e4, 1e4]).view(1, 2, 1, 1, 1).requires_grad_(), torch.ones(1, 1, 1, 1, 1)
    log_prob, prob = Bernoulli().log_prob(bright, params), Bernoulli().prob(bright, params)
    assert log_prob.flatten().tolist() == [-1e4, 0] and prob.flatten().tolist() == [0, 1]
    (log_prob.sum() + prob.sum() + Bernoulli().kl_from_prior(0.0, params).sum()).backward()
    assert gradient_of(params).isfinite().all()


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_gaussian_agrees_with_torch_and_channels_add_up(params, sigma):
    image = torch.rand(B, 1, C, H, W, dtype=torch.float64)
    expected = Normal(params, sigma).log_prob(image.expand_as(params)).sum(2, keepdim=True)
    assert torch.allclose(Gaussian(sigma).log_prob(image, params), expected, rtol=0, atol=1e-10)
    assert torch.allclose(Gaussian(sigma).prob(image, params), expected.exp(), rtol=1e-10, atol=0)
    expected = kl_divergence(Normal(torch.full_like(params, 0.3), sigma), Normal(params, sigma)).sum(2, keepdim=True)
    assert torch.allclose(Gaussian(sigma).kl_from_prior(0.3, params), expected, rtol=0, atol=1e-10)
    assert Gaussian(sigma).mean(params) is params


def test_sigma_must_be_positive():
    with pytest.raises(InputError, match="sigma=0"):
        Gaussian(sigma=0)
