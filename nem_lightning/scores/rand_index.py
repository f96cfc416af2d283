"""Adjusted Rand index: agreement of two groupings on pairs of pixels."""

import torch
from torch import Tensor

from nem_lightning.headings import Heading
from nem_lightning.scores.base import MeanOverImages, equal, scored_tables, with_unscored


def adjusted_rand_index(labels: Tensor, groups: Tensor) -> Tensor:
    """Give the adjusted Rand index of each image: agreement on pairs of pixels, 0 on average for random groupings.

    Args:
        labels: predicted labels, integers from 0, (B, H, W) or (B, N).
        groups: true groups, the same shape; pixels of group 0 are not scored.

    Returns:
        (B,) float64; NaN for an image without a scored pixel.

    Source: Hubert and Arabie 1985. Equal to ``sklearn.metrics.adjusted_rand_score``.
    """
    table, has_score = scored_tables(labels, groups)
    total = table.sum((1, 2))  # (S,)
    squares = (table**2).sum((1, 2))
    rows, columns = (table.sum(2) ** 2).sum(1), (table.sum(1) ** 2).sum(1)
    # Ordered pairs of pixels: together in both, only in the true, only in the predicted grouping, in neither.
    both, only_true, only_pred = squares - total, rows - squares, columns - squares
    neither = total**2 - both - only_true - only_pred - total
    numerator = 2 * (both * neither - only_true * only_pred)
    denominator = (both + only_true) * (only_true + neither) + (both + only_pred) * (only_pred + neither)
    same = equal(table)
    scores = torch.where(same, 1.0, numerator / denominator.masked_fill(same, 1))
    return with_unscored(scores, has_score)


class AdjustedRandIndex(MeanOverImages):
    """Mean over images of :func:`adjusted_rand_index`."""

    heading = Heading("ARI")

    def by_image(self, labels: Tensor, groups: Tensor) -> Tensor:
        """Score each image: (B, H, W), (B, H, W) -> (B,) float64, NaN for an image without a score."""
        return adjusted_rand_index(labels, groups)
