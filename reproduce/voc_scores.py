"""Scores of segmentations, image by image, and their summary.

Labels are (N, H, W), integers from 0, masks (N, H, W): 0 is background, -1 is void. Scores are (N,) float64, NaN for an
image that has none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nem_lightning.scores.best_overlap import mean_best_overlap
from nem_lightning.scores.mutual_information import adjusted_mutual_information
from nem_lightning.scores.rand_index import adjusted_rand_index

USED = 0.01  # a segment that holds this share of the pixels is counted as used


class Summary(NamedTuple):
    """A score's mean over images, averaged over runs, and its spread."""

    mean: float
    sd_over_runs: float | None
    """Standard deviation of the runs' means; None for a single run."""
    standard_error: float | None
    """Standard error over images of the scores averaged over runs; None for a single image."""
    images: int
    """How many images have the score."""
    runs: int


Summaries = dict[str, Summary | None]


def summary(scores: Tensor) -> Summary | None:
    """Give mean and spread of (R, N) scores of R runs; None if no image has the score."""
    scores = scores[:, ~scores.isnan().any(0)]
    runs, images = scores.shape
    if not images:
        return None
    means, by_image = scores.mean(1), scores.mean(0)
    return Summary(
        means.mean().item(),
        means.std().item() if runs > 1 else None,
        by_image.std().item() / images**0.5 if images > 1 else None,
        images,
        runs,
    )


def summaries(runs: Sequence[Tensor], measure: Callable[[Tensor], Mapping[str, Tensor]]) -> Summaries:
    """Measure the labels of each run, and give the summary of each score by its name."""
    found = [measure(labels) for labels in runs]
    return {name: summary(torch.stack([scores[name] for scores in found])) for name in found[0]}


def against_truth(labels: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give foreground adjusted Rand index and mean best overlap, by each kind of mask.

    ``ari_...`` counts only the pixels of objects. An image with one object has a foreground ARI of 1 if one segment
    holds the whole object, and of 0 otherwise; ``ari_..._2+`` is over the images with at least two objects.
    """
    scores = {}
    for kind, mask in masks.items():
        scores[f"mbo_{kind}"] = mean_best_overlap(labels, mask)
        scores[f"ari_{kind}"] = adjusted_rand_index(labels, mask)
        single = torch.tensor([len(one[one > 0].unique()) < 2 for one in mask])
        scores[f"ari_{kind}_2+"] = scores[f"ari_{kind}"].masked_fill(single, torch.nan)
    return scores


def by_colour(labels: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """Give ``colour_r2``, the share of colour variance that the segments explain, and ``segments``.

    ``segments`` is the number of segments that hold at least one pixel in a hundred.
    """
    share = torch.stack([(labels == k).double().mean((1, 2)) for k in range(int(labels.max()) + 1)])
    return {"colour_r2": explained_colour(labels, pixels), "segments": (share >= USED).sum(0).double()}


def explained_colour(labels: Tensor, pixels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Give the share of colour variance between segments: 1 - (squares about segment means) / (about the mean).

    Args:
        labels: (N, H, W), integers from 0.
        pixels: (N, C, H, W).
        counted: (N, H, W) boolean, the pixels that count; all by default.

    Returns:
        (N,) float64 in [0, 1]; NaN for an image of one colour.
    """
    counted = torch.ones_like(labels, dtype=torch.bool) if counted is None else counted
    weight = counted.flatten(1).double()[:, None]  # (N, 1, P)
    x = pixels.flatten(2).double()  # (N, C, P)
    x = x - (x * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True)
    total = (x.square() * weight).sum((1, 2))
    between = torch.zeros_like(total)
    for k in range(int(labels.max()) + 1):
        inside = weight * (labels.flatten(1) == k)[:, None]
        between += ((x * inside).sum(2).square() / inside.sum(2).clamp_min(1)).sum(1)
    return torch.where(total > 0, between / total, torch.nan)


def agreement(labels: Tensor, references: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give adjusted mutual information (max) and adjusted Rand index with other groupings, over all pixels but void.

    Args:
        labels: (N, H, W).
        references: by name, (N, H, W), integers from -1; a background is a group like the others.
    """
    scores = {}
    for name, reference in references.items():
        scores[f"ami with {name}"] = adjusted_mutual_information(labels, reference + 1)
        scores[f"ari with {name}"] = adjusted_rand_index(labels, reference + 1)
    return scores
