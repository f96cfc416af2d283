"""Reconstruction Clustering against its formulas, written out in NumPy."""

import numpy as np
import pytest
import torch
from tiny import SHAPE, few_shapes

from nem_lightning.errors import InputError
from nem_lightning.models.corruption import SaltAndPepper
from nem_lightning.models.reconstruction_clustering import Clustering, ReconstructionClustering
from nem_lightning.models.starts import energy
from nem_lightning.scores.mutual_information import AdjustedMutualInformation


def model(**settings) -> ReconstructionClustering:
    torch.manual_seed(0)
    return ReconstructionClustering(**{"image_shape": SHAPE, "hidden_size": 7, "num_steps": 3, **settings})


def images(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 2, (count, 1, *SHAPE), generator=torch.Generator().manual_seed(1)).float()


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("hard", [False, True])
def test_the_steps_are_those_of_the_paper(hard):
    em, frames = model(hard=hard).double(), images().double()
    found = em(frames, num_components=3, generator=torch.Generator().manual_seed(2))

    weights = [layer.detach().numpy() for layer in (em.encoder.weight, em.encoder.bias)]
    weights += [layer.detach().numpy() for layer in (em.decoder.weight, em.decoder.bias)]
    into, bias, out, bias_out = weights
    x = frames.numpy().reshape(5, 1, -1)
    noise = torch.randn(5, 3, 1, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gamma = np.abs(noise.numpy().reshape(5, 3, -1))
    gamma /= gamma.sum(1, keepdims=True)
    for grouping in found:
        mu = sigmoid(np.tanh((gamma * x) @ into.T + bias) @ out.T + bias_out)
        likelihood = np.where(x == 1, mu, 1 - mu)
        gamma = likelihood / likelihood.sum(1, keepdims=True)
        if hard:
            gamma = (gamma == gamma.max(1, keepdims=True)).astype(float)
        assert grouping.mean is not None
        np.testing.assert_allclose(grouping.mean.detach().numpy().reshape(mu.shape), mu, rtol=1e-9)
        np.testing.assert_allclose(grouping.responsibilities.detach().numpy().reshape(gamma.shape), gamma, rtol=1e-9)


def test_the_loss_restores_clean_images_from_noisy_ones():
    em, frames = model(), images()
    loss = em.training_loss(frames, generator=torch.Generator().manual_seed(3))
    noisy = SaltAndPepper(0.4)(frames[:, 0], torch.Generator().manual_seed(3))
    restored = em.restore(noisy).sigmoid()
    expected = -torch.where(frames[:, 0] == 1, restored, 1 - restored).log().sum() / 5
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    reconstruction = loss.last().reconstruction
    assert reconstruction is not None and torch.equal(reconstruction, restored)


def test_the_best_of_several_starts_is_kept_for_each_image():
    em, frames = model(num_starts=6), images(20)

    def energies(starts: int, seed: int) -> torch.Tensor:
        (*_, last) = em.groupings(frames, num_starts=starts, generator=torch.Generator().manual_seed(seed))
        assert isinstance(last, Clustering)
        return energy(em.likelihood, frames[:, 0], last.logits, last.responsibilities)

    best, first = energies(6, 0), energies(1, 0)
    assert (best <= first).all() and (best < first).any()


def test_it_separates_shapes_after_training_on_single_ones():
    """A few steps of SGD on single shapes give more than chance (0.0) by far; published after all of them: 0.929."""
    em = model(image_shape=(1, 28, 28), hidden_size=100, num_steps=10)
    single = few_shapes(600, num_objects=1).frames.float()
    optimizer = torch.optim.SGD(em.parameters(), lr=0.083)
    generator = torch.Generator().manual_seed(0)
    for step in range(240):
        batch = single[step % 6 * 100 :][:100]
        optimizer.zero_grad()
        em.training_loss(batch, generator=generator).total.backward()
        optimizer.step()
    test = few_shapes(50)
    (*_, last) = em.groupings(test.frames.float(), generator=generator)
    score = AdjustedMutualInformation("max")
    score.update(last.labels, test.groups[:, 0].long())
    assert score.compute() > 0.6


def test_what_it_refuses():
    with pytest.raises(InputError, match="activation='elu': must be one of sigmoid, tanh, relu"):
        model(activation="elu")
    with pytest.raises(InputError, match="hidden_size=0"):
        model(hidden_size=0)
    with pytest.raises(InputError, match="takes still images only"):
        model()(torch.zeros(2, 4, *SHAPE))


@pytest.mark.parametrize(("activation", "gain"), [("sigmoid", 4), ("tanh", 1), ("relu", 2**0.5)])
def test_the_first_weights(activation, gain):
    model = ReconstructionClustering((1, 20, 20), hidden_size=100, activation=activation)
    for layer, scale in ((model.encoder, gain * 6**0.5), (model.decoder, 1)):
        bound = scale / 500**0.5  # of a uniform distribution
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert layer.bias.std().item() == pytest.approx(0.1, rel=0.3)
