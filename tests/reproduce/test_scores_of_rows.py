"""The parts of the results: the scorer, the baselines, and whether EM increases the log likelihood."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score
from torch.utils.data import DataLoader

from nem_lightning.datamodules.base import TensorFrames
from nem_lightning.datamodules.shapes import generate, stills
from nem_lightning.models.classical import Chance, ConnectedComponents, PositionKMeans, PositionMixture
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.grouping import Grouping, GroupingModel, TrainingLoss
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.m_steps import GradientMStep, RecurrentMStep
from nem_lightning.training.module import GroupingModule
from reproduce import convergence, scoring

SHAPE = (1, 6, 5)
SCORES = scoring.scores_by_image()
UNTRAINED = {"kmeans": PositionKMeans, "gmm": PositionMixture, "components": ConnectedComponents, "chance": Chance}


def few_shapes(count: int) -> TensorFrames:
    return stills(*generate(count, 28, 3, np.random.default_rng(0)))


def random_images(count: int) -> TensorFrames:
    images = (torch.rand(count, 1, *SHAPE) > 0.5).to(torch.uint8)
    return TensorFrames(images, torch.randint(0, 3, (count, 1, *SHAPE[1:])))


def three_blocks() -> TensorFrames:
    """Give two images: three 3x3 blocks far apart, and three blocks of which two touch and share a pixel."""
    images, groups = np.zeros((2, 20, 20)), np.zeros((2, 20, 20))
    for index, corners in enumerate([[(0, 0), (0, 15), (15, 8)], [(0, 0), (2, 2), (15, 8)]]):
        for k, (y, x) in enumerate(corners, start=1):
            images[index, y : y + 3, x : x + 3] = 1
            groups[index, y : y + 3, x : x + 3] = k
    groups[1, 2, 2] = 0
    return stills(images, groups)


def rnn_em(num_starts: int = 1) -> NeuralEM:
    torch.manual_seed(0)
    return NeuralEM(
        RecurrentMStep(SHAPE, hidden_size=8), Bernoulli(), num_components=2, num_steps=3, num_starts=num_starts
    )


def baseline(name: str, data: TensorFrames) -> GroupingModule:
    return GroupingModule(UNTRAINED[name](data.frames.shape[2:], True))


@pytest.mark.parametrize("num_starts", [1, 3])
def test_the_scores_are_those_of_the_packages_own_test(tmp_path, num_starts):
    """Compares the scores of every step, over more than one batch. ``evaluate.py`` runs the same test."""
    torch.manual_seed(1)
    data, module = random_images(70), GroupingModule(rnn_em(num_starts), SCORES)
    loader = DataLoader(data, scoring.BATCH, collate_fn=lambda batch: batch)
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.test(module, loader, verbose=False)
    assert module.test_scores is not None
    found = scoring.by_image(module, data, SCORES, steps=(3,))[3]
    assert scoring.means(found, data)["all"] == pytest.approx({"images": 70, "scored": 70, **_own(module, 3)})
    if num_starts == 1:  # with several starts, the scorer chooses the best start for each step
        for step, values in scoring.by_image(module, data, SCORES, steps=(1, 2)).items():
            assert {name: of.mean().item() for name, of in values.items()} == pytest.approx(_own(module, step))


def _own(module: GroupingModule, step: int) -> dict[str, float]:
    assert module.test_scores is not None
    return {name: module.test_scores.by_step[step - 1][name] for name in SCORES}


class Quadrants(GroupingModel):
    """Groups pixels into left and right, then into top and bottom, in turns. Learns nothing, draws nothing."""

    def unroll(self, frames, num_components, num_steps, num_starts, generator) -> Iterator[Grouping]:
        *_, height, width = frames.shape
        for step in range(1, num_steps + 1):
            second = torch.zeros(len(frames), height, width)
            if step % 2:
                second[:, :, width // 2 :] = 1
            else:
                second[:, height // 2 :] = 1
            yield Grouping(torch.stack([1 - second, second], 1).unsqueeze(2))

    def training_loss(self, frames, *, epoch=0, generator=None) -> TrainingLoss:
        raise NotImplementedError


def test_a_model_of_ones_own_is_scored():
    groups = torch.ones(3, 1, 6, 5, dtype=torch.long)
    groups[..., 2:] = 2
    data = TensorFrames(torch.ones(3, 1, 1, 6, 5), groups)
    found = scoring.by_image(GroupingModule(Quadrants(SHAPE, True, 2)), data, SCORES, steps=(1, 2))
    assert found[1]["ami_max"].tolist() == [1, 1, 1] and (found[2]["ami_max"] < 0.1).all()
    assert found[1]["reconstruction_error"].isnan().all()  # the model has no means
    assert scoring.means(found[1], data)["all"]["reconstruction_error"] is None


def test_an_unroll_that_is_overridden_is_used():
    class Last(NeuralEM):
        def unroll(self, frames, num_components, num_steps, num_starts, generator):
            for iterate in super().unroll(frames, num_components, num_steps, num_starts, generator):
                gamma = torch.zeros_like(iterate.responsibilities)
                gamma[:, 0] = 1
                yield replace(iterate, responsibilities=gamma)

    data = random_images(5)
    model = Last(RecurrentMStep(SHAPE, hidden_size=8), Bernoulli(), num_components=2, num_steps=3)
    (found,) = scoring.by_image(GroupingModule(model), data, {"ari": SCORES["ari"]}).values()
    assert found["ari"].nan_to_num().tolist() == [0] * 5  # one group for all pixels


@pytest.mark.parametrize("name", ["kmeans", "gmm", "components"])
def test_baselines_find_blocks_that_are_far_apart(name):
    data = three_blocks()
    (found,) = scoring.by_image(baseline(name, data), data, SCORES).values()
    assert all(found[score][0] == pytest.approx(1) for score in ("ami_max", "ami_arithmetic", "ari"))
    assert scoring.overlap(data).tolist() == [False, True]


def test_baselines_on_shapes_score_what_is_known_of_them():
    """On 10,000 images: k-means 0.812, connected components 0.521 and 0.595, Gaussian mixture 0.753."""
    data = few_shapes(150)
    found = {}
    for name in UNTRAINED:
        (values,) = scoring.by_image(baseline(name, data), data, SCORES).values()
        found[name] = scoring.means(values, data)["all"]
    assert found["kmeans"]["ami_max"] == pytest.approx(0.812, abs=0.04)
    assert found["components"]["ami_max"] == pytest.approx(0.521, abs=0.06)
    assert found["components"]["ami_arithmetic"] == pytest.approx(0.595, abs=0.06)
    assert found["gmm"]["ami_max"] == pytest.approx(0.753, abs=0.05)
    assert found["chance"]["ami_max"] == pytest.approx(0, abs=0.01)


def test_scores_are_those_of_scikit_learn():
    data = few_shapes(30)
    module = baseline("kmeans", data)
    (found,) = scoring.by_image(module, data, SCORES).values()
    labels = next(module.model.groupings(data.frames.float(), generator=module.generator("test", 0))).labels
    for index, (label, groups) in enumerate(zip(labels, data.groups[:, 0], strict=True)):
        scored = groups > 0
        for normalizer in ("max", "arithmetic"):
            expected = adjusted_mutual_info_score(groups[scored], label[scored], average_method=normalizer)
            assert found[f"ami_{normalizer}"][index].item() == pytest.approx(expected, abs=1e-9)


def test_images_with_and_without_overlap_are_apart():
    groups = torch.tensor([0, 1, 0, 1]).reshape(4, 1, 1, 1).repeat(1, 1, 1, 2)
    groups[0, ..., 1] = 1
    data = TensorFrames(torch.tensor([1.0, 1, 0, 1]).reshape(4, 1, 1, 1, 1).repeat(1, 1, 1, 1, 2), groups)
    found = scoring.means({"ari": torch.tensor([1.0, 0.5, torch.nan, 0.0])}, data)
    assert found["all"] == {"images": 4, "scored": 3, "ari": 0.5}
    assert found["overlap"] == {"images": 1, "scored": 1, "ari": 1.0}
    assert found["no_overlap"] == {"images": 3, "scored": 2, "ari": 0.25}


def nem(seed: int, scale: float, hidden_size: int, k: int = 3) -> NeuralEM:
    torch.manual_seed(seed)
    m_step = GradientMStep(SHAPE, hidden_size)
    torch.nn.init.normal_(m_step.weight, std=scale)
    return NeuralEM(m_step, Bernoulli(), num_components=k).double()


def some_frames() -> torch.Tensor:
    return (torch.rand(4, 1, *SHAPE) > 0.5).double()


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.05, 2), hidden_size=st.integers(1, 12), k=st.integers(1, 4))
def test_with_small_steps_the_log_likelihood_never_falls(seed, scale, hidden_size, k):
    em = convergence.with_small_steps(nem(seed, scale, hidden_size, k), 0.01)
    log_likelihood, q = convergence.follow(em, some_frames(), num_steps=15)
    assert log_likelihood.shape == q.shape == (15, 4)
    assert not convergence.fell(log_likelihood).any()
    assert (q <= log_likelihood + 1e-9 + 30 * np.log(k)).all()  # Q leaves out log pi and the entropy


def test_with_large_steps_it_falls():
    em = convergence.with_small_steps(nem(0, 2.0, 12), 50.0)
    assert convergence.fell(convergence.follow(em, some_frames(), num_steps=15)[0]).any()


def test_an_m_step_raises_q():
    em = convergence.with_small_steps(nem(0, 1.0, 5), 0.01)
    image = some_frames()[:, 0]
    before = em.step(em.start(image, 2), image, image)
    after = em.step(before, image, image)
    gamma = before.responsibilities
    assert (convergence.q(em, image, gamma, after.params) > convergence.q(em, image, gamma, before.params)).all()


def test_curves_are_means_by_variant_and_step():
    module, data = GroupingModule(nem(0, 1.0, 5).float()), random_images(3)
    found = convergence.curves(module, data)
    assert [entry["variant"] for entry in found[::20]] == ["as trained", "step size 0.1", "step size 0.01"]
    assert [entry["step"] for entry in found[:20]] == list(range(1, 21))
    assert found[0]["fell"] is None and found[41]["fell"] == 0
