"""What the scores share: counts of pixels, and means over images.

AMI and ARI take predicted labels and true ``groups``, integers of shape (B, H, W) or (B, N), and score each image on
the pixels of a true group, 1, 2, .... Group 0 is background or overlap, and -1 is void; neither is scored. An image
without a scored pixel has no score: its score is NaN, and means leave the image out and count it. All counts are
float64, so they are exact for images of any size.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from nem_lightning.headings import Heading

VOID = -1
"""The group of pixels that no score uses: in Pascal VOC, pixels that the annotators left unlabelled."""


def contingency_table(labels: Tensor, groups: Tensor) -> Tensor:
    """Count how many scored pixels each true group shares with each predicted one.

    (B, ...), (B, ...) -> (B, G, K) float64, G the largest true group, K one more than the largest label.
    """
    labels, groups = labels.flatten(1).long(), groups.flatten(1).long().clamp_min(0)
    num_labels, num_groups = int(labels.max()) + 1, int(groups.max()) + 1
    table = torch.zeros(len(labels), num_groups * num_labels, dtype=torch.float64, device=labels.device)
    table.scatter_add_(1, groups * num_labels + labels, torch.ones_like(labels, dtype=torch.float64))
    return table.unflatten(1, (num_groups, num_labels))[:, 1:]


def scored_tables(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Give the contingency tables of the images with a score, and which images these are, (B,) boolean.

    Clusters are sorted by size, and clusters that are empty in every image are left out, because class numbers
    may have large gaps. No score depends on the order.
    """
    table = contingency_table(labels, groups)
    has_score = table.sum((1, 2)) > 0
    table = table[has_score]
    for dim in (1, 2):
        sizes, order = table.sum(3 - dim).sort(1, descending=True)
        table = table.gather(dim, order.unsqueeze(3 - dim).expand_as(table))
        table = table.narrow(dim, 0, int((sizes > 0).sum(1).max()) if len(sizes) else 0)
    return table, has_score


def with_unscored(scores: Tensor, has_score: Tensor) -> Tensor:
    """Put scores at the places of the images that have one, and NaN at the others: (..., S) -> (..., B)."""
    full = scores.new_full((*scores.shape[:-1], len(has_score)), torch.nan)
    full[..., has_score] = scores
    return full


def equal(table: Tensor) -> Tensor:
    """Say whether each group is one label and each label one group, (B, G, K) -> (B,) boolean."""
    shared = table > 0
    return (shared.sum(1) <= 1).all(1) & (shared.sum(2) <= 1).all(1)


class Score(Metric):
    """A score of a data set. The arguments of ``update`` name what the score needs.

    ``update`` may take, by these names: ``labels`` (B, H, W), ``responsibilities`` (B, K, 1, H, W), ``reconstruction``
    (B, C, H, W) or None, ``target`` (B, C, H, W), the frame that is explained, and ``groups`` (B, H, W).
    """

    full_state_update = False
    heading: Heading
    """How the score is shown."""
    shares_counts: ClassVar[bool] = False
    """Whether all scores of this class add up the same counts, whatever their arguments. If so, one adds up for all."""


class WeightedMean(Score):
    """A float64 mean that is NaN if any value is NaN; a subclass adds values in ``update``.

    torchmetrics' MeanMetric leaves NaN out, or ignores the weights with ``nan_strategy="disable"`` (1.9.0).
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.total: Tensor
        self.weight: Tensor

    def compute(self) -> Tensor:
        """Give the mean, a float64 scalar."""
        return self.total / self.weight


class Mean(WeightedMean):
    """A mean of means."""

    def update(self, value: Tensor, weight: int) -> None:
        """Add a mean over ``weight`` items, a scalar."""
        self.total += value.double() * weight
        self.weight += weight


class MeanOverImages(Score):
    """The mean of a score over the images that have one; exact over batches and processes.

    A subclass has a ``heading`` and :meth:`by_image`. After ``compute``, ``scored`` and ``unscored`` say how many
    images had a score and how many had none.
    """

    higher_is_better = True
    is_differentiable = False
    num_scores: ClassVar[int] = 1
    """How many scores are added up at once."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(self.num_scores, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("scored", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("unscored", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.total: Tensor
        self.scored: Tensor
        self.unscored: Tensor

    def by_image(self, labels: Tensor, groups: Tensor) -> Tensor:
        """Score each image: (B, H, W), (B, H, W) -> (B,) float64, NaN for an image without a score."""
        raise NotImplementedError

    def all_by_image(self, labels: Tensor, groups: Tensor) -> Tensor:
        """Give all scores that are added up at once, (num_scores, B)."""
        return self.by_image(labels, groups).unsqueeze(0)

    def update(self, labels: Tensor, groups: Tensor) -> None:
        """Add a batch: predicted labels and true groups, (B, H, W) or (B, N)."""
        scores = self.all_by_image(labels, groups)
        has_score = ~scores[0].isnan()
        self.total += scores.nansum(1)
        self.scored += has_score.sum()
        self.unscored += (~has_score).sum()

    def compute(self) -> Tensor:
        """Give the mean, a float64 scalar; NaN if no image had a score."""
        return self.total[0] / self.scored
