"""What is measured of a way to part images into segments, image by image, and its summary.

Labels are (R, N, H, W): R runs (checkpoints, or seeds of a baseline), N images. Scores are (R, N), NaN for an image
that has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nem_lightning.scores.best_overlap import VOID, mean_best_overlap
from nem_lightning.scores.mutual_information import adjusted_mutual_information, adjusted_rand_index

KINDS = ("class", "instance")
USED = 0.01  # a segment that holds this share of the pixels is counted as used
BATCH = 64


@dataclass
class Images:
    """The images that everything is scored on, with their official masks (0 background, 255 void)."""

    pixels: Tensor
    """(N, 3, H, W) in [0, 1]."""
    masks: dict[str, Tensor]
    """By kind, (N, H, W) integers; void everywhere where an image has no such mask."""


class Summary(NamedTuple):
    """Of a score: its mean over images, averaged over runs."""

    mean: float
    sd_over_runs: float | None
    """Of the runs' means; none of a single run."""
    standard_error: float | None
    """Over images, of the scores averaged over runs; none of a single image."""
    images: int
    """How many have the score."""
    runs: int


def summary(scores: Tensor) -> Summary | None:
    """(R, N) -> mean and spread; none where no image has the score."""
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


def against_truth(labels: Tensor, images: Images) -> dict[str, Tensor]:
    """Foreground adjusted Rand index and mean best overlap, by each kind of mask.

    ``ari_...`` is over the pixels of objects alone. An image with one object has a foreground ARI of 1 where the
    object lies in one segment and of 0 where it does not, whatever else is found; ``ari_..._2+`` is over the images
    with at least two objects.
    """
    scores = {}
    for kind in KINDS:
        mask = images.masks[kind]
        objects = torch.where(mask == VOID, 0, mask)
        scores[f"mbo_{kind}"] = _each(mean_best_overlap, labels, mask)
        scores[f"ari_{kind}"] = _each(adjusted_rand_index, labels, objects)
        single = torch.tensor([len(one.unique()) - (one == 0).any().int() < 2 for one in objects])
        scores[f"ari_{kind}_2+"] = scores[f"ari_{kind}"].masked_fill(single, torch.nan)
    return scores


def by_colour(labels: Tensor, images: Images) -> dict[str, Tensor]:
    """``colour_r2``, the share of colour variance that the segments explain, and ``segments``, how many hold at least
    one pixel in a hundred."""
    share = torch.stack([(labels == k).double().mean((2, 3)) for k in range(int(labels.max()) + 1)])
    return {
        "colour_r2": torch.stack([explained_colour(run, images.pixels) for run in labels]),
        "segments": (share >= USED).sum(0).double(),
    }


def explained_colour(labels: Tensor, pixels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Variance of colour between segments over its variance: 1 - (squares about segment means) / (about the mean).

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


def agreement(labels: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Adjusted mutual information (max) and adjusted Rand index with another grouping, over all its pixels but void.

    Args:
        labels: (R, N, H, W).
        reference: (N, H, W), integers; its background is a group like the others.
    """
    groups = torch.where(reference == VOID, 0, reference + 1)
    return {
        "ami": _each(adjusted_mutual_information, labels, groups),
        "ari": _each(adjusted_rand_index, labels, groups),
    }


def _each(score: Callable[[Tensor, Tensor], Tensor], labels: Tensor, groups: Tensor) -> Tensor:
    """(R, N, H, W), (N, H, W) -> (R, N), in batches."""
    parts = list(zip(labels.split(BATCH, dim=1), groups.split(BATCH), strict=True))
    return torch.stack([torch.cat([score(one[run], of) for one, of in parts]) for run in range(len(labels))])
