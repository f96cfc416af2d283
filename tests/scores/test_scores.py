"""Compares the scores with scikit-learn's, image by image."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from python_server import forking
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from tiny import default_scores, tiny_model
from torchmetrics import MetricCollection

from nem_lightning.errors import InputError
from nem_lightning.headings import Heading
from nem_lightning.models.grouping import Grouping
from nem_lightning.scores.base import Mean, Score
from nem_lightning.scores.best_overlap import MeanBestOverlap, mean_best_overlap
from nem_lightning.scores.collection import ScoreSet
from nem_lightning.scores.images import Confidence, ReconstructionError
from nem_lightning.scores.mutual_information import AdjustedMutualInformation, adjusted_mutual_information
from nem_lightning.scores.rand_index import AdjustedRandIndex, adjusted_rand_index

EMPTY = pytest.mark.filterwarnings("ignore:The ``compute`` method")
"""For tests that ask for scores without any image."""


def expected(labels: torch.Tensor, groups: torch.Tensor, score) -> np.ndarray:
    """Give scikit-learn's score of each image on its scored pixels; NaN if the image has none."""
    pairs = ((one[of > 0], of[of > 0]) for one, of in zip(labels.flatten(1), groups.flatten(1), strict=True))
    return np.array([score(of.numpy(), one.numpy()) if len(of) else np.nan for one, of in pairs])


def assert_equal_to_sklearn(labels: torch.Tensor, groups: torch.Tensor) -> None:
    for normalizer in ("max", "arithmetic"):

        def score(of, one, normalizer=normalizer):
            return adjusted_mutual_info_score(of, one, average_method=normalizer)

        scores = adjusted_mutual_information(labels, groups, normalizer)
        np.testing.assert_allclose(scores, expected(labels, groups, score), rtol=0, atol=1e-9)
    scores = adjusted_rand_index(labels, groups)
    np.testing.assert_allclose(scores, expected(labels, groups, adjusted_rand_score), rtol=0, atol=1e-9)


@given(data=st.data(), pixels=st.integers(1, 40), clusters=st.integers(1, 6), groups=st.integers(1, 6))
def test_random_pairs_degenerate_ones_included(data, pixels, clusters, groups):
    seed = data.draw(st.integers(0, 2**31))
    torch.manual_seed(seed)
    labels = torch.randint(clusters, (5, pixels))
    true = torch.randint(-1, groups + 1, (5, pixels))
    labels[0] = true[0] + 1  # the same
    labels[1] = 0  # one cluster
    true[2] = 1  # one group
    labels[3], true[3] = 0, 1  # one of each
    labels[4] = true[4] = torch.arange(1, pixels + 1)  # all distinct
    assert_equal_to_sklearn(labels, true)


@pytest.mark.parametrize(("size", "clusters", "groups"), [(28, 3, 3), (64, 5, 20), (7, 49, 49)])
def test_images(size, clusters, groups):
    torch.manual_seed(0)
    true = torch.randint(-1, groups + 1, (6, size, size))
    labels = torch.where(
        torch.rand(6, size, size) < 0.5, true.abs() % clusters, torch.randint(clusters, (6, size, size))
    )
    assert_equal_to_sklearn(labels, true)


def test_large_images_do_not_overflow():
    torch.manual_seed(0)
    true = torch.randint(1, 4, (1, 400, 400))
    labels = torch.where(torch.rand(1, 400, 400) < 0.1, torch.randint(3, (1, 400, 400)), true - 1)
    assert_equal_to_sklearn(labels, true)


@pytest.mark.parametrize("other", [0, -1])
def test_background_and_void_are_not_scored(other):
    groups = torch.tensor([[other, 1, 1, 2, 2, other]])
    assert adjusted_rand_index(torch.tensor([[0, 0, 0, 1, 1, 1]]), groups).item() == 1
    assert adjusted_mutual_information(torch.tensor([[3, 0, 0, 1, 1, 2]]), groups).item() == pytest.approx(1)
    confidence = Confidence()
    confidence.update(torch.tensor([0.1, 0.6, 0.7, 0.8, 0.9, 0.1]).view(1, 1, 1, 1, 6), groups.view(1, 1, 6))
    assert confidence.compute().item() == pytest.approx(0.75)


def test_the_normalizers_differ_on_an_object_split_in_two():
    groups = torch.tensor([[1] * 40 + [2] * 40 + [3] * 40])
    labels = torch.tensor([[0] * 40 + [1] * 40 + [2] * 20 + [3] * 20])
    assert adjusted_mutual_information(labels, groups, "max") < adjusted_mutual_information(
        labels, groups, "arithmetic"
    )


def test_images_without_a_score_are_left_out_and_counted():
    labels, groups = torch.zeros(3, 2, 2, dtype=torch.long), torch.zeros(3, 2, 2, dtype=torch.long)
    groups[1] = torch.tensor([[1, 1], [2, 2]])
    labels[1] = torch.tensor([[0, 0], [1, 1]])
    for metric in (AdjustedMutualInformation("max"), AdjustedRandIndex()):
        metric.update(labels, groups)
        assert metric.compute() == pytest.approx(1)
        assert metric.scored == 1 and metric.unscored == 2
        metric.reset()
        metric.update(labels[:1], groups[:1])
        assert metric.compute().isnan()


def test_batches_and_processes_add_up_to_the_mean_over_images():
    torch.manual_seed(0)
    labels, groups = torch.randint(3, (10, 50)), torch.randint(4, (10, 50))
    metrics = MetricCollection(
        {"max": AdjustedMutualInformation("max"), "arithmetic": AdjustedMutualInformation("arithmetic")}
    )
    metrics.update(labels[:7], groups[:7])
    metrics.update(labels[7:], groups[7:])
    values = metrics.compute()
    for name in ("max", "arithmetic"):
        assert values[name] == pytest.approx(adjusted_mutual_information(labels, groups, name).mean().item(), abs=1e-12)


def _worker(rank: int, world: int, address: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.manual_seed(0)
    labels, groups = torch.randint(3, (7, 50)), torch.randint(4, (7, 50))
    metric = AdjustedMutualInformation("max")
    metric.update(labels[rank::world], groups[rank::world])  # 4 images here, 3 there
    results.put((metric.compute().item(), adjusted_mutual_information(labels, groups).mean().item()))
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    context = forking()
    results = context.SimpleQueue()
    arguments = (2, f"file://{tmp_path}/rendezvous", results)
    processes = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    for _ in range(2):
        computed, mean = results.get()
        assert computed == pytest.approx(mean, abs=1e-12)


def test_unknown_normalizer():
    with pytest.raises(InputError, match="normalizer='min': must be one of max, arithmetic"):
        AdjustedMutualInformation("min")


@given(seed=st.integers(0, 2**31), pixels=st.integers(1, 30), labels=st.integers(1, 4), groups=st.integers(0, 4))
def test_best_overlap_is_the_plain_loop(seed, pixels, labels, groups):
    """Void pixels count nowhere, background pixels in a segment only."""
    torch.manual_seed(seed)
    found, true = torch.randint(labels, (3, pixels)), torch.randint(-1, groups + 1, (3, pixels))
    for one, of, score in zip(found.tolist(), true.tolist(), mean_best_overlap(found, true).tolist(), strict=True):
        best = []
        for group in sorted({group for group in of if group > 0}):
            overlaps = []
            for label in range(labels):
                both = sum(k == label and g == group for k, g in zip(one, of, strict=True))
                either = sum(g != -1 and (k == label or g == group) for k, g in zip(one, of, strict=True))
                overlaps.append(both / either if either else 0.0)
            best.append(max(overlaps))
        expected = sum(best) / len(best) if best else float("nan")
        assert score == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("score", "function"),
    [
        (AdjustedMutualInformation("max"), functools.partial(adjusted_mutual_information, normalizer="max")),
        (
            AdjustedMutualInformation("arithmetic"),
            functools.partial(adjusted_mutual_information, normalizer="arithmetic"),
        ),
        (AdjustedRandIndex(), adjusted_rand_index),
        (MeanBestOverlap(), mean_best_overlap),
    ],
    ids=["AMI max", "AMI arithmetic", "ARI", "best overlap"],
)
def test_a_score_of_each_image_is_its_function_and_the_score_is_their_mean(score, function):
    torch.manual_seed(0)
    labels, groups = torch.randint(3, (6, 5, 5)), torch.randint(-1, 4, (6, 5, 5))
    groups[2] = -1
    by_image, expected = score.by_image(labels, groups), function(labels, groups)
    assert by_image.dtype == torch.float64 and torch.equal(by_image.nan_to_num(9), expected.nan_to_num(9))
    assert by_image.isnan().tolist() == [False, False, True, False, False, False]
    for part in (slice(0, 4), slice(4, 6)):
        score.update(labels[part], groups[part])
    assert score.compute() == pytest.approx(expected.nanmean().item(), abs=1e-12)
    assert (score.scored, score.unscored) == (5, 1)


def test_the_reconstruction_error_is_a_mean_over_images_pixels_and_channels():
    torch.manual_seed(0)
    target, found, score = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4), ReconstructionError()
    expected = (target - found).double().square().mean((1, 2, 3))
    assert torch.allclose(score.by_image(target, found), expected)
    for part in (slice(0, 4), slice(4, 5)):
        score.update(target[part], found[part])
    assert score.compute() == pytest.approx(expected.mean().item())
    score.update(target, None)  # from a model without means
    assert score.compute().isnan() and score.by_image(target, None).isnan().all()


def test_a_mean_weighs_its_values_and_keeps_nan():
    mean = Mean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute() == 2
    mean.update(torch.tensor(torch.nan), 1)
    assert mean.compute().isnan()


class ShareOfFirst(Score):
    """A score like one that a user may write: the share of the image that the first component takes."""

    heading = Heading("first", ".1%")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("taken", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros(()), dist_reduce_fx="sum")
        self.taken: torch.Tensor
        self.pixels: torch.Tensor

    def update(self, responsibilities):
        self.taken += responsibilities[:, 0].sum()
        self.pixels += responsibilities[:, 0].numel()

    def compute(self):
        return self.taken / self.pixels


def updated(scores: dict[str, Score], *parts: slice):
    """Give a set of scores that has seen a few images, the model, the images, their groups and their grouping."""
    torch.manual_seed(0)
    model, image, groups = tiny_model(), torch.rand(6, 1, 6, 5).round(), torch.randint(-1, 3, (6, 6, 5))
    groups[0], groups[5] = 0, -1
    found = ScoreSet(scores, model)
    last = model(image.unsqueeze(1))[-1]
    for part in parts or (slice(0, 6),):
        iterate = type(last)(**{name: value[part] for name, value in vars(last).items()})
        found.update(model, image[part], groups[part], iterate)
    return found, model, image, groups, last


@EMPTY
def test_a_set_gives_every_score_and_every_number_of_the_model():
    scores = {**default_scores(), "first": ShareOfFirst(), "best_overlap": MeanBestOverlap()}
    found, model, image, groups, last = updated(scores, slice(0, 4), slice(4, 6))
    assert list(found.headings) == [*scores, *model.headings]
    assert found.headings["first"] == Heading("first", ".1%") and found.headings["loss"] == model.headings["loss"]
    values, reported = found.compute(), model.report(image, last)
    assert list(values) == list(found.headings)
    assert values["first"] == pytest.approx(last.responsibilities[:, 0].mean().item())
    assert values["best_overlap"] == pytest.approx(mean_best_overlap(last.labels, groups).nanmean().item())
    for name in ("max", "arithmetic"):
        expected = adjusted_mutual_information(last.labels, groups, name).nanmean().item()
        assert values[f"ami_{name}"] == pytest.approx(expected)
    for name, value in reported.items():
        assert values[name].item() == pytest.approx(value.item(), rel=1e-6)
    assert found.images.compute().tolist() == [6, 2]  # images, unscored images
    found.reset()
    assert found.images.compute().tolist() == [0, 0]


def test_what_scores_of_one_class_count_is_counted_once(monkeypatch):
    counted = []
    original = AdjustedMutualInformation.all_by_image
    monkeypatch.setattr(AdjustedMutualInformation, "all_by_image", lambda *call: counted.append(1) or original(*call))
    found, *_ = updated(default_scores(), slice(0, 3), slice(3, 6))
    values = found.compute()
    assert len(counted) == 2 and values["ami_max"] != values["ami_arithmetic"]


def test_two_scores_of_a_users_own_class_are_not_mixed():
    """The two may count different things."""

    class ShareOf(ShareOfFirst):
        def __init__(self, component: int) -> None:
            super().__init__()
            self.component = component

        def update(self, responsibilities):
            super().update(responsibilities[:, self.component :])

    found, _, _, _, last = updated({"one": ShareOf(0), "two": ShareOf(1)}, slice(0, 3), slice(3, 6))
    values, expected = found.compute(), last.responsibilities.mean((0, 2, 3, 4))
    assert [values[name].item() for name in ("one", "two")] == pytest.approx(expected.tolist())


@EMPTY
def test_sets_do_not_share_what_they_count():
    scores, model = {"first": ShareOfFirst()}, tiny_model()
    one, other = ScoreSet(scores, model), ScoreSet(scores, model)
    image, groups = torch.ones(2, 1, 6, 5), torch.ones(2, 6, 5, dtype=torch.long)
    one.update(model, image, groups, model(image.unsqueeze(1))[-1])
    assert one.compute()["first"] > 0 and other.compute()["first"].isnan() and scores["first"].pixels == 0


def test_no_scores_are_a_set_too():
    found, model, *_ = updated({})
    assert found.compute().keys() == model.headings.keys()


def test_a_score_named_like_a_number_of_the_model():
    with pytest.raises(InputError, match=r"scores\.loss: is a number that NeuralEM reports itself"):
        ScoreSet({"loss": AdjustedRandIndex()}, tiny_model())


def test_labels_and_reconstruction_of_a_grouping():
    gamma = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).view(1, 2, 1, 1, 2)
    mean = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 1, 2)
    assert Grouping(gamma).labels.tolist() == [[[0, 1]]] and Grouping(gamma).reconstruction is None
    reconstruction = Grouping(gamma, mean).reconstruction
    assert reconstruction is not None
    assert reconstruction.flatten().tolist() == pytest.approx([0.9 + 0.3, 0.4 + 3.2])
