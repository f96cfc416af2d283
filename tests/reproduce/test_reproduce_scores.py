"""What the results table is made of: baselines, scores by image, and whether EM climbs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score
from tiny import SHAPE, few_shapes, tiny_module

from nem_lightning.datamodules.base import TensorImages
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.m_steps import GradientMStep
from reproduce import baselines, convergence, scoring


def three_blocks() -> TensorImages:
    """Three 3x3 blocks far apart, and the same with two blocks that touch and share a pixel."""
    images, groups = torch.zeros(2, 1, 20, 20, dtype=torch.uint8), torch.zeros(2, 20, 20, dtype=torch.uint8)
    for index, corners in enumerate([[(0, 0), (0, 15), (15, 8)], [(0, 0), (2, 2), (15, 8)]]):
        for k, (y, x) in enumerate(corners, start=1):
            images[index, 0, y : y + 3, x : x + 3] = 1
            groups[index, y : y + 3, x : x + 3] = k
    groups[1, 2, 2] = 0
    return TensorImages(images, groups)


@pytest.mark.parametrize("name", ["kmeans", "gmm", "components"])
def test_baselines_find_blocks_that_are_far_apart(name):
    scores = scoring.score(baselines.grouper(name), three_blocks())
    assert all(scores.values[score][0, 0] == pytest.approx(1) for score in ("ami_max", "ami_arithmetic", "ari"))
    assert list(scores.overlap) == [False, True]


def test_touching_blocks_are_one_component():
    assert baselines.components(three_blocks().images[1, 0].numpy(), 0).max() == 2


def test_an_image_of_fewer_pixels_than_components():
    image = np.zeros((20, 20))
    image[3, 4] = image[10, 10] = 1
    assert set(baselines.kmeans(image, 0)[image > 0]) == {0, 1}
    assert not baselines.gmm(np.zeros((20, 20)), 0).any()


def test_baselines_on_shapes_score_what_is_known_of_them():
    """On 10,000 images: k-means 0.812, connected components 0.521 and 0.595, Gaussian mixture 0.753."""
    images = few_shapes(200)
    found = {name: scoring.means(scoring.score(baselines.grouper(name), images))["all"] for name in baselines.BASELINES}
    assert found["kmeans"]["ami_max"] == pytest.approx(0.812, abs=0.04)
    assert found["components"]["ami_max"] == pytest.approx(0.521, abs=0.06)
    assert found["components"]["ami_arithmetic"] == pytest.approx(0.595, abs=0.06)
    assert found["gmm"]["ami_max"] == pytest.approx(0.753, abs=0.05)
    assert found["chance"]["ami_max"] == pytest.approx(0, abs=0.01)


def test_scores_are_those_of_scikit_learn():
    images = few_shapes(30)
    group = baselines.grouper("kmeans")
    scores = scoring.score(group, images)
    labels = next(iter(group(images.images.float(), 0))).labels
    for index, (found, groups) in enumerate(zip(labels, images.groups, strict=True)):
        scored = groups > 0
        for normalizer in ("max", "arithmetic"):
            expected = adjusted_mutual_info_score(groups[scored], found[scored], average_method=normalizer)
            assert scores.values[f"ami_{normalizer}"][0, index] == pytest.approx(expected, abs=1e-9)


def test_images_with_and_without_overlap_are_apart():
    scores = scoring.ImageScores(
        {name: np.array([[1.0, 0.5, np.nan, 0.0]]) for name in scoring.SCORES}, np.array([True, False, False, False])
    )
    found = scoring.means(scores)
    assert (found["all"]["images"], found["all"]["scored"], found["all"]["ami_max"]) == (4, 3, 0.5)
    assert (found["overlap"]["images"], found["overlap"]["ari"]) == (1, 1.0)
    assert (found["no_overlap"]["images"], found["no_overlap"]["scored"], found["no_overlap"]["ari"]) == (3, 2, 0.25)


@pytest.mark.parametrize("num_starts", [1, 3])
def test_a_step_scored_among_all_is_the_step_scored_alone(num_starts):
    images = TensorImages((torch.rand(70, *SHAPE) > 0.5).to(torch.uint8), torch.randint(0, 3, (70, 6, 5)))
    every = scoring.score(scoring.trained(tiny_module(num_starts=num_starts), 5, every_step=True), images)
    module = tiny_module(num_steps=3, num_starts=num_starts)
    alone = scoring.score(scoring.trained(module), images)
    for name in scoring.SCORES:
        assert every.values[name].shape == (5, 70)
        np.testing.assert_array_equal(every.values[name][2], alone.values[name][0])
    image = images.images[:64].float()
    last = module(image, generator=module.generator("test", 0), num_starts=num_starts)[-1]  # as evaluate.py has it
    expected = (image - (last.responsibilities * last.mean).sum(1)).double().square().flatten(1).mean(1)
    np.testing.assert_allclose(alone.values["reconstruction_error"][0, :64], expected.detach(), rtol=1e-6)


def nem(seed: int, scale: float, hidden_size: int) -> NeuralEM:
    torch.manual_seed(seed)
    em = NeuralEM(GradientMStep(SHAPE, hidden_size), Bernoulli()).double()
    torch.nn.init.normal_(em.m_step.weight, std=scale)
    return em


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.05, 2), hidden_size=st.integers(1, 12), k=st.integers(1, 4))
def test_with_small_steps_the_log_likelihood_never_falls(seed, scale, hidden_size, k):
    em = convergence.with_small_steps(nem(seed, scale, hidden_size), 0.01)
    image = (torch.rand(4, *SHAPE) > 0.5).double()
    log_likelihood, q = convergence.follow(em, image, k, num_steps=15)
    assert log_likelihood.shape == q.shape == (15, 4)
    assert not convergence.fell(log_likelihood).any()
    assert (q <= log_likelihood + 1e-9 + image[0].numel() * np.log(k)).all()  # Q leaves out log pi and the entropy


def test_with_large_steps_it_falls():
    em = convergence.with_small_steps(nem(0, 2.0, 12), 50.0)
    image = (torch.rand(4, *SHAPE) > 0.5).double()
    assert convergence.fell(convergence.follow(em, image, 3, num_steps=15)[0]).any()


def test_an_m_step_raises_q():
    em = convergence.with_small_steps(nem(0, 1.0, 5), 0.01)
    image = (torch.rand(4, *SHAPE) > 0.5).double()
    before = em.step(em.start(image, 2), image, image)
    after = em.step(before, image, image)
    gamma = before.responsibilities
    assert (convergence.q(em, image, gamma, after.params) > convergence.q(em, image, gamma, before.params)).all()
