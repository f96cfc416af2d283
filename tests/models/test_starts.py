"""Where EM starts, and which start it keeps."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SHAPE, few_shapes

from nem_lightning.errors import InputError
from nem_lightning.models.em import Iterate, NeuralEM
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.models.starts import SPREAD, STARTS, bright_regions, distant_values, energy


@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from(sorted(STARTS)),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    components=st.integers(1, 8),
    bright=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_first_responsibilities_are_distributions(seed, name, channels, height, width, components, bright):
    """Also for black images, and for fewer pixels than components."""
    generator = torch.Generator().manual_seed(seed)
    image = (torch.rand(3, channels, height, width, generator=generator) < bright).float()
    gamma = STARTS[name](image, components, generator)
    assert gamma.shape == (3, components, 1, height, width)
    assert (gamma >= 0).all() and ((gamma > 0).all() or name == "distant_values")
    assert torch.allclose(gamma.sum(1), torch.ones(()))


def test_bright_regions_lie_around_bright_pixels_that_lie_apart():
    """In nearly every draw, each of three distant blocks has its own component, though one block is twice as bright."""
    image = torch.zeros(500, 1, 20, 20)
    corners = [(0, 0), (0, 17), (17, 9)]
    for (y, x), brightness in zip(corners, (1.0, 0.5, 0.5), strict=True):
        image[:, :, y : y + 3, x : x + 3] = brightness
    gamma = bright_regions(image, 3, torch.Generator().manual_seed(0))
    owners = torch.stack([gamma[:, :, 0, y + 1, x + 1].argmax(1) for y, x in corners], 1)
    assert (owners.sort(1).values == torch.arange(3)).all(1).float().mean() > 0.95


def test_bright_regions_are_drawn_as_the_centres_of_k_means_plus_plus():
    """Counts how often each pair of three pixels in a row is drawn. gamma shows which pair was drawn."""
    brightness, draws = [0.5, 0.2, 0.3], 40_000
    image = torch.tensor(brightness, dtype=torch.float64).expand(draws, 1, 1, 3)
    gamma = bright_regions(image, 2, torch.Generator().manual_seed(0))[:, 0, 0, 0]  # of the first component, (draws, 3)
    total = 0.0
    for one, other in itertools.permutations(range(3), 2):
        share = sum(brightness[n] * (n - one) ** 2 for n in range(3))
        expected = brightness[one] * brightness[other] * (other - one) ** 2 / share
        bell = torch.tensor([(n - one) ** 2 - (n - other) ** 2 for n in range(3)], dtype=torch.float64)
        drawn = torch.isclose(gamma, (-bell / (2 * (3 * SPREAD) ** 2)).sigmoid()).all(1).double().mean().item()
        assert abs(drawn - expected) < 4 * math.sqrt(expected * (1 - expected) / draws), (one, other)
        total += drawn
    assert total == pytest.approx(1)


def test_bright_regions_spread_as_said():
    """For two bright pixels and two components, the ratio of gamma is that of two Gaussians, one around each pixel."""
    image = torch.zeros(1, 1, 9, 12, dtype=torch.float64)
    image[0, 0, 1, 2] = image[0, 0, 7, 10] = 1
    gamma = bright_regions(image, 2, torch.Generator().manual_seed(0))[0, :, 0]
    if gamma[0, 1, 2] < gamma[1, 1, 2]:
        gamma = gamma.flip(0)
    one, other = (4 - 1) ** 2 + (5 - 2) ** 2, (4 - 7) ** 2 + (5 - 10) ** 2
    expected = math.exp((other - one) / (2 * (12 * SPREAD) ** 2))
    assert (gamma[0, 4, 5] / gamma[1, 4, 5]).item() == pytest.approx(expected)


def test_distant_values_are_drawn_as_by_k_means_plus_plus():
    """Of four pixels, the probability of each pair, written out; each pixel belongs to the nearer of the two."""
    values = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.5]], dtype=torch.float64)
    draws = 4000
    image = values.T.reshape(1, 2, 2, 2).expand(draws, -1, -1, -1)
    gamma = distant_values(image, 2, torch.Generator().manual_seed(0))
    assert gamma.shape == (draws, 2, 1, 2, 2) and gamma.unique().tolist() == [0, 1] and (gamma.sum(1) == 1).all()
    distance = (values.unsqueeze(0) - values.unsqueeze(1)).square().sum(2)
    expected: dict[tuple[int, ...], float] = {}
    for one in range(4):
        for other in range(4):
            if other != one:
                owners = tuple((distance[other] < distance[one]).int().tolist())
                expected[owners] = expected.get(owners, 0) + (distance[one, other] / distance[one].sum()).item() / 4
    drawn = gamma[:, 1, 0].flatten(1).int().tolist()
    assert sum(expected.values()) == pytest.approx(1) and {tuple(each) for each in drawn} <= set(expected)
    for owners, probability in expected.items():
        share = drawn.count(list(owners)) / draws
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / draws)


def test_distant_values_of_an_image_of_one_colour():
    gamma = distant_values(torch.full((2, 3, 4, 4), 0.5), 3, torch.Generator().manual_seed(0))
    assert (gamma[:, 0] == 1).all() and (gamma[:, 1:] == 0).all()


@pytest.mark.parametrize("dark_weight", [1.0, 4.0])
def test_energy_is_the_sum_written_out(dark_weight):
    torch.manual_seed(0)
    image = torch.rand(2, 2, 3, 4).round().double()
    params = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64)
    gamma = torch.rand(2, 3, 1, 3, 4, dtype=torch.float64)
    gamma /= gamma.sum(1, keepdim=True)
    mu = params.sigmoid()
    for b in range(2):
        expected, taken = 0.0, [0.0] * 3
        for k in range(3):
            for c in range(2):
                for h in range(3):
                    for w in range(4):
                        g, m = gamma[b, k, 0, h, w].item(), mu[b, k, c, h, w].item()
                        if image[b, c, h, w] == 1:
                            expected -= g * math.log(m)
                            taken[k] += g
                        else:
                            expected -= dark_weight * math.log(1 - m)
        expected += sum(t * math.log(t / sum(taken) * 3) for t in taken)
        assert energy(Bernoulli(), image, params, gamma, dark_weight)[b].item() == pytest.approx(expected)


def test_energy_of_real_pixels_is_the_sum_written_out():
    """The sum is the mixture's negative log likelihood, plus a term for the evenness of the components' shares."""
    torch.manual_seed(0)
    image = torch.rand(2, 2, 3, 4).double()
    mu = torch.rand(2, 3, 2, 3, 4).double()
    gamma = torch.rand(2, 3, 1, 3, 4).double()
    gamma /= gamma.sum(1, keepdim=True)
    sigma = 0.25
    for b in range(2):
        expected, shares = 0.0, [0.0] * 3
        for h in range(3):
            for w in range(4):
                mixture = 0.0
                for k in range(3):
                    p = 1.0
                    for c in range(2):
                        away = (image[b, c, h, w] - mu[b, k, c, h, w]).item()
                        p *= math.exp(-(away**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
                    mixture += p / 3
                    shares[k] += gamma[b, k, 0, h, w].item()
                expected -= math.log(mixture)
        assert sum(shares) == pytest.approx(12)
        expected += sum(share * math.log(share / 12 * 3) for share in shares)
        assert energy(Gaussian(sigma), image, mu, gamma)[b].item() == pytest.approx(expected)


def test_energy_prefers_a_component_for_each_object():
    """Equation 5 prefers one component for two overlapping objects, and another component for none."""
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, 0, :4, :4] = masks[1, 0, 2:6, 2:6] = 1  # two overlapping squares
    image = masks.amax(0, keepdim=True)
    apart, merged = masks.unsqueeze(0) * 12 - 6, torch.stack([image[0], torch.zeros(1, 8, 8)]).unsqueeze(0) * 12 - 6
    em = NeuralEM(RecurrentMStep((1, 8, 8), 2), Bernoulli())
    found = [energy(Bernoulli(), image, params, em.e_step(image, params)) for params in (apart, merged)]
    assert found[0] < found[1]


def test_energy_of_a_black_image():
    params = torch.randn(2, 3, 1, 4, 4)
    gamma = torch.full((2, 3, 1, 4, 4), 1 / 3)
    found = energy(Bernoulli(), torch.zeros(2, 1, 4, 4), params, gamma)
    assert torch.allclose(found, -(1 - params.sigmoid()).log().sum((1, 2, 3, 4)))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.25)], ids=["binary", "real"])
@pytest.mark.parametrize(("num_frames", "dark_weight"), [(1, 1.0), (3, 4.0)])
def test_of_several_starts_the_one_of_lowest_energy_is_kept(likelihood, num_frames, dark_weight):
    """The energy of a sequence is that of its last frame."""
    torch.manual_seed(0)
    em = NeuralEM(RecurrentMStep((1, 28, 28), 8), likelihood, num_starts=4, init="bright_regions")
    em.dark_weight = dark_weight
    frames = few_shapes(20 * num_frames).frames.float().view(20, num_frames, 1, 28, 28)
    kept = em(frames, num_steps=2, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    alone = [em(frames, num_steps=2, num_starts=1, generator=generator) for _ in range(4)]
    energies = torch.stack([em.energy(frames[:, -1], trajectory[-1]) for trajectory in alone])
    if likelihood.binary:
        weighted = [
            energy(likelihood, frames[:, -1], end[-1].params, end[-1].responsibilities, dark_weight) for end in alone
        ]
        assert torch.equal(energies, torch.stack(weighted))
    assert len(energies.argmin(0).unique()) > 1
    for index, best in enumerate(energies.argmin(0)):
        for step in range(2):
            for field in dataclasses.fields(Iterate):
                one, other = (getattr(of[step], field.name) for of in (kept, alone[best]))
                assert torch.equal(one[index], other[index])


def test_a_start_that_ends_in_nan_is_never_kept(monkeypatch):
    em = NeuralEM(RecurrentMStep(SHAPE, 2), Bernoulli())
    frames, nan = torch.ones(3, 1, *SHAPE), math.nan
    energies = iter(torch.tensor([[3.0, nan, 1.0], [nan, 2.0, 1.0], [1.0, 3.0, nan]]))
    monkeypatch.setattr("nem_lightning.models.em.energy", lambda *_: next(energies))
    (kept,) = em(frames, num_steps=1, num_starts=3, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    alone = [em(frames, num_steps=1, generator=generator)[0].params for _ in range(3)]
    assert all(torch.equal(kept.params[index], alone[best][index]) for index, best in enumerate([2, 1, 0]))


def test_choosing_a_start_needs_no_graph(monkeypatch):
    em = NeuralEM(RecurrentMStep(SHAPE, 2), Bernoulli())
    needed = []
    monkeypatch.setattr(em, "energy", lambda image, last: needed.append(last.params.requires_grad) or image[:, 0, 0, 0])
    (kept,) = em(torch.ones(3, 1, *SHAPE), num_steps=1, num_starts=2)
    assert needed == [False, False] and kept.params.requires_grad


def test_where_takes_each_image_from_one_of_the_two():
    dims = {"state": 2, "mean": 4, "params": 4, "responsibilities": 4}
    one, other = (
        Iterate(**{name: torch.full((2, *[1] * n), value) for name, n in dims.items()}) for value in (0.0, 1.0)
    )
    taken = one.where(torch.tensor([True, False]), other)
    assert all(getattr(taken, field.name).flatten().tolist() == [0, 1] for field in dataclasses.fields(Iterate))


def test_bad_starts():
    with pytest.raises(InputError, match="init='kmeans': must be one of noise, bright_regions, distant_values"):
        NeuralEM(RecurrentMStep(SHAPE, 2), Bernoulli(), init="kmeans")
    with pytest.raises(InputError, match="num_starts=0: must be an integer of at least 1"):
        NeuralEM(RecurrentMStep(SHAPE, 2), Bernoulli(), num_starts=0)
