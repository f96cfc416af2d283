"""How well one predicted segment covers each true object: exact, on batches."""

import torch
from torch import Tensor

from nem_lightning.headings import Heading
from nem_lightning.scores.base import VOID, MeanOverImages, contingency_table


def mean_best_overlap(labels: Tensor, groups: Tensor) -> Tensor:
    """Give the mean best overlap of each image: the mean over its true objects of the best intersection over union.

    For each true object, the largest intersection over union with any one predicted segment; several objects
    may have the same best segment. Whole segments are compared: their background pixels count in the union
    (the adjusted Rand index leaves the background out). Void pixels are ignored.

    Args:
        labels: predicted labels, integers from 0, (B, H, W) or (B, N); the segments cover all pixels.
        groups: true objects, the same shape: 0 is the background, no object; ``VOID`` (-1) is void.

    Returns:
        (B,) float64 in (0, 1]; NaN for an image without an object.

    Source: Uijlings et al. 2013 (selective search), section 5, which takes the best over proposals.
    """
    table = contingency_table(labels, torch.where(groups == VOID, 0, groups + 1))  # (B, 1 + G, K), background first
    shared = table[:, 1:]  # (B, G, K)
    object_sizes, segment_sizes = shared.sum(2, keepdim=True), table.sum(1, keepdim=True)  # (B, G, 1), (B, 1, K)
    union = object_sizes + segment_sizes - shared
    best = (shared / union.clamp_min(1)).amax(2)  # (B, G); 0 for a group that has no pixel
    return best.sum(1) / (object_sizes > 0).sum((1, 2))


class MeanBestOverlap(MeanOverImages):
    """Mean over images of :func:`mean_best_overlap`; images without an object are left out and counted."""

    heading = Heading("best overlap")

    def by_image(self, labels: Tensor, groups: Tensor) -> Tensor:
        """Score each image: (B, H, W), (B, H, W) -> (B,) float64, NaN for an image without an object."""
        return mean_best_overlap(labels, groups)
