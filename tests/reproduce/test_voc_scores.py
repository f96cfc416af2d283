"""Mean best overlap, and the groupings of Pascal VOC that need no learning."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score

from nem_lightning.scores.base import VOID
from nem_lightning.scores.best_overlap import MeanBestOverlap, mean_best_overlap
from reproduce.voc_baselines import BASELINES, felzenszwalb, merged
from reproduce.voc_scores import against_truth, agreement, by_colour, explained_colour, summaries, summary

BY_COLOUR = ("colour k-means", "position + colour k-means", "SLIC merged", "Felzenszwalb merged")


def brute_force(labels: np.ndarray, groups: np.ndarray) -> float:
    """Compute mean best overlap: compare every object with every segment, as sets of pixels."""
    counted = groups != VOID
    best = []
    for group in sorted(set(groups[counted].tolist()) - {0}):
        true = groups == group
        overlaps = []
        for label in np.unique(labels):
            segment = (labels == label) & counted
            overlaps.append((true & segment).sum() / (true | segment).sum())
        best.append(max(overlaps))
    return float(np.mean(best)) if best else float("nan")


@given(seed=st.integers(0, 2**31), pixels=st.integers(1, 30), segments=st.integers(1, 5), objects=st.integers(0, 6))
def test_mean_best_overlap_of_random_pairs(seed, pixels, segments, objects):
    torch.manual_seed(seed)
    values = torch.tensor([0, VOID, *range(3, 3 + objects)])  # class numbers have gaps
    labels, groups = torch.randint(segments, (4, pixels)), values[torch.randint(len(values), (4, pixels))]
    groups[3] = VOID
    expected = [brute_force(one.numpy(), of.numpy()) for one, of in zip(labels, groups, strict=True)]
    np.testing.assert_allclose(mean_best_overlap(labels, groups), expected, rtol=0, atol=1e-12)


def test_known_overlaps():
    groups = torch.tensor([[0, 0, 1, 1, 2, 2, VOID, VOID]])
    exact = torch.tensor([[0, 0, 1, 1, 2, 2, 1, 0]])
    assert mean_best_overlap(exact, groups).item() == 1  # void counts nowhere
    one = torch.zeros(1, 8, dtype=torch.long)
    assert mean_best_overlap(one, groups).item() == pytest.approx(2 / 6)  # the background counts in the union
    both = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]])
    assert mean_best_overlap(both, groups).item() == pytest.approx(2 / 4)  # two objects may share their best segment
    assert mean_best_overlap(both, torch.zeros_like(groups)).isnan().all()


def test_the_metric_is_the_mean_over_images_with_objects():
    torch.manual_seed(0)
    labels, groups = torch.randint(3, (9, 5, 4)), torch.randint(3, (9, 5, 4))
    groups[4] = 0
    metric = MeanBestOverlap()
    metric.update(labels[:6], groups[:6])
    metric.update(labels[6:], groups[6:])
    assert metric.compute() == pytest.approx(mean_best_overlap(labels, groups).nanmean().item())
    assert metric.scored == 8 and metric.unscored == 1


def halves(noise: float = 0.02) -> np.ndarray:
    """A blue upper and a yellow lower half, with a little noise."""
    image = np.zeros((32, 32, 3))
    image[:16], image[16:] = (0.1, 0.2, 0.8), (0.9, 0.8, 0.1)
    return (image + np.random.default_rng(0).normal(0, noise, image.shape)).clip(0, 1)


@pytest.mark.parametrize("name", BY_COLOUR)
def test_two_coloured_halves_are_two_segments(name):
    labels = BASELINES[name](halves(), 2, 0)
    assert len(np.unique(labels[:16])) == len(np.unique(labels[16:])) == 1
    assert labels[0, 0] != labels[-1, 0]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_labels_are_at_most_k_and_a_seed_repeats_them(name, noise, k):
    labels = BASELINES[name](halves(noise), k, 1)
    assert labels.shape == (32, 32) and labels.dtype.kind == "i"
    assert labels.min() == 0 and labels.max() < k
    np.testing.assert_array_equal(labels, BASELINES[name](halves(noise), k, 1))


def test_blocks_are_the_same_for_every_image_and_balanced():
    for name in ("compact blocks", "middle and sides", "vertical strips"):
        one, other = (BASELINES[name](image, 3, 0) for image in (halves(), 1 - halves()))
        np.testing.assert_array_equal(one, other)
        assert np.bincount(one.ravel()).min() > 0.25 * one.size


def test_merging_takes_the_neighbours_of_most_alike_colour():
    image = np.zeros((1, 40, 3))
    image[:, 10:20], image[:, 20:30], image[:, 30:] = 0.1, 0.8, 0.05  # the last is like the first, but no neighbour
    segments = np.arange(40)[None] // 10
    a, b, c, d = merged(image, segments, 3)[0, ::10]
    assert a == b and len({a, c, d}) == 3
    assert len(np.unique(merged(image, segments, 9))) == 4
    assert felzenszwalb(np.zeros((32, 32, 3)), 3).max() == 0


def test_colour_variance_that_segments_explain():
    image = torch.zeros(2, 3, 1, 4)
    image[0, 0] = torch.tensor([[0.0, 0.2, 0.8, 1.0]])
    labels = torch.tensor([[[0, 0, 1, 1]]] * 2)
    r2 = explained_colour(labels, image)
    assert r2[0].item() == pytest.approx(1 - 0.04 / 0.68) and r2[1].isnan()
    assert explained_colour(torch.zeros_like(labels), image)[0].item() == pytest.approx(0)
    ends = torch.tensor([[[True, False, False, True]]] * 2)
    assert explained_colour(labels, image, ends)[0].item() == pytest.approx(1)
    found = by_colour(labels, image)
    assert found["segments"].tolist() == [2, 2] and found["colour_r2"].shape == (2,)


def test_agreement_is_over_all_pixels_but_void():
    torch.manual_seed(0)
    labels, reference = torch.randint(3, (1, 6, 6)), torch.randint(3, (1, 6, 6))
    reference[0, 0] = VOID
    expected = adjusted_mutual_info_score(reference[0, 1:].ravel(), labels[0, 1:].ravel(), average_method="max")
    assert agreement(labels, {"x": reference})["ami with x"].item() == pytest.approx(expected)


def test_images_with_one_object_are_told_apart():
    mask = torch.tensor([[[0, 7, 7, VOID]], [[1, 1, 2, 2]], [[0, 0, 0, VOID]]])
    scores = against_truth(torch.zeros(3, 1, 4, dtype=torch.long), {"class": mask})
    assert scores["ari_class"].nan_to_num(-1).tolist() == [1, 0, -1]  # 1 for no grouping at all
    assert scores["ari_class_2+"].nan_to_num(-1).tolist() == [-1, 0, -1]


def test_summaries():
    found = summary(torch.tensor([[1.0, 2.0, torch.nan], [3.0, 4.0, torch.nan]]))
    assert found == (2.5, pytest.approx(2**0.5), pytest.approx(0.5), 2, 2)
    assert summary(torch.tensor([[1.0, torch.nan]])) == (1, None, None, 1, 1)
    assert summary(torch.full((2, 3), torch.nan)) is None
    runs = [torch.zeros(2), torch.ones(2)]
    assert summaries(runs, lambda labels: {"a": labels, "b": labels * torch.nan})["a"] == summary(torch.stack(runs))
