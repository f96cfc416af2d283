"""Compares the scores with scikit-learn's, image by image."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from python_server import forking
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from torchmetrics import MetricCollection

from nem_lightning.errors import InputError
from nem_lightning.scores.base import Mean
from nem_lightning.scores.best_overlap import MeanBestOverlap, mean_best_overlap
from nem_lightning.scores.images import Confidence, ReconstructionError
from nem_lightning.scores.mutual_information import AdjustedMutualInformation, adjusted_mutual_information
from nem_lightning.scores.rand_index import AdjustedRandIndex, adjusted_rand_index


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
