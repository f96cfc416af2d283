"""How well a grouping agrees with the true one: exact scores, on batches.

Every function takes predicted labels and true ``groups``, integers of shape (B, H, W) or (B, N), and
scores each image on the pixels whose true group is not 0 (0 is background, overlap or void). An
image without such a pixel has no score: NaN, left out of means and counted. All counts are float64,
so no image is too large.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from nem_lightning.errors import InputError

NORMALIZERS = ("max", "arithmetic")
_CHUNK = 2**22  # float64 entries of the hypergeometric sum held at a time (32 MiB), unless one image needs more


def contingency_table(labels: Tensor, groups: Tensor) -> Tensor:
    """How many scored pixels each true group shares with each predicted one.

    (B, ...), (B, ...) -> (B, G, K) float64, G the largest true group, K one more than the largest label.
    """
    labels, groups = labels.flatten(1).long(), groups.flatten(1).long()
    num_labels, num_groups = int(labels.max()) + 1, int(groups.max()) + 1
    table = torch.zeros(len(labels), num_groups * num_labels, dtype=torch.float64, device=labels.device)
    table.scatter_add_(1, groups * num_labels + labels, torch.ones_like(labels, dtype=torch.float64))
    return table.unflatten(1, (num_groups, num_labels))[:, 1:]


class _Information(NamedTuple):
    """Of each image, (B,) float64, in nats."""

    mutual: Tensor
    expected: Tensor
    entropy_true: Tensor
    entropy_pred: Tensor


def _entropy(counts: Tensor) -> Tensor:
    """Entropy of labellings with these counts, (B, G) -> (B,)."""
    p = counts / counts.sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1)


def _expected_mutual_information(rows: Tensor, columns: Tensor, total: Tensor) -> Tensor:
    """Mean mutual information over all tables with these margins (Vinh et al. 2010, equation 24a).

    Sums, for each pair of a true and a predicted cluster of a and b pixels, over the n pixels that they
    may share: n/N log(n N / (a b)) times the hypergeometric probability of n.

    (B, G), (B, K), (B,) -> (B,).
    """
    a, b = rows[:, :, None, None], columns[:, None, :, None]  # (B, G, 1, 1), (B, 1, K, 1)
    big_n = total[:, None, None, None]  # (B, 1, 1, 1)
    most = int(torch.minimum(a, b).max())  # M
    n = torch.arange(1, most + 1, dtype=torch.float64, device=rows.device)  # (M,)
    log_factorial = torch.lgamma(torch.arange(int(total.max()) + 2, dtype=torch.float64, device=rows.device) + 1)

    def lf(count: Tensor) -> Tensor:
        return log_factorial[count.clamp(0, len(log_factorial) - 1).long()]  # out of range only if not `possible`

    log_prob = (
        (lf(a) + lf(b) + lf(big_n - a) + lf(big_n - b) - lf(big_n))
        - lf(n)
        - lf(a - n)
        - lf(b - n)
        - lf(big_n - a - b + n)
    )  # (B, G, K, M)
    possible = (n <= torch.minimum(a, b)) & (n >= a + b - big_n)
    information = n / big_n * (n.log() + big_n.log() - (a * b).clamp_min(1).log())
    return torch.where(possible, information * log_prob.exp(), 0.0).sum((1, 2, 3))


def _information(table: Tensor) -> _Information:
    """(B, G, K) -> entropies, mutual information and its expectation."""
    rows, columns = table.sum(2), table.sum(1)  # (B, G), (B, K)
    total = rows.sum(1)  # (B,)
    product = rows[:, :, None] * columns[:, None, :]
    n = total[:, None, None]
    mutual = torch.xlogy(table / n, table * n / product.clamp_min(1)).sum((1, 2))
    per_image = table[0].numel() * max(1, int(torch.minimum(rows.amax(1), columns.amax(1)).max()))
    images = max(1, _CHUNK // per_image)
    chunks = [slice(i, i + images) for i in range(0, len(table), images)]
    expected = torch.cat([_expected_mutual_information(rows[c], columns[c], total[c]) for c in chunks])
    return _Information(mutual, expected, _entropy(rows), _entropy(columns))


def _scored(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The contingency tables of the images that have a score, and which those are (B,) boolean.

    Clusters are in order of size, and those that are empty in every image are left out: class numbers may
    have large gaps, and no score depends on their order.
    """
    table = contingency_table(labels, groups)
    has_score = table.sum((1, 2)) > 0
    table = table[has_score]
    for dim in (1, 2):
        sizes, order = table.sum(3 - dim).sort(1, descending=True)
        table = table.gather(dim, order.unsqueeze(3 - dim).expand_as(table))
        table = table.narrow(dim, 0, int((sizes > 0).sum(1).max()) if len(sizes) else 0)
    return table, has_score


def _with_unscored(scores: Tensor, has_score: Tensor) -> Tensor:
    """Scores of the images that have one, put back in their places; NaN elsewhere. (..., S) -> (..., B)."""
    full = scores.new_full((*scores.shape[:-1], len(has_score)), torch.nan)
    full[..., has_score] = scores
    return full


def _adjusted_mutual_information(labels: Tensor, groups: Tensor) -> Tensor:
    """By every normaliser at once: (B, ...), (B, ...) -> (len(NORMALIZERS), B)."""
    table, has_score = _scored(labels, groups)
    if not len(table):
        return torch.full((len(NORMALIZERS), len(has_score)), torch.nan, dtype=torch.float64, device=groups.device)
    mutual, expected, entropy_true, entropy_pred = _information(table)
    entropies = {
        "max": torch.maximum(entropy_true, entropy_pred),
        "arithmetic": (entropy_true + entropy_pred) / 2,
    }
    normalizer = torch.stack([entropies[name] for name in NORMALIZERS])  # (2, S)
    scores = _away_from_zero(mutual - expected) / _away_from_zero(normalizer - expected)
    # Equal groupings are a perfect match, even where chance would give it too (0 / 0). Otherwise a labelling
    # that does not split the pixels has no information.
    one_group, one_label = (table.sum(2) > 0).sum(1) == 1, (table.sum(1) > 0).sum(1) == 1  # (S,)
    scores = torch.where(one_group | one_label, 0.0, scores)
    scores = torch.where(_equal(table), 1.0, scores)
    return _with_unscored(scores, has_score)


def _equal(table: Tensor) -> Tensor:
    """Whether each group is one label and each label one group, (B, G, K) -> (B,) boolean."""
    shared = table > 0
    return (shared.sum(1) <= 1).all(1) & (shared.sum(2) <= 1).all(1)


def _away_from_zero(x: Tensor) -> Tensor:
    """At least one float64 epsilon from 0, the sign kept (0 counts as positive), as scikit-learn does."""
    eps = torch.finfo(torch.float64).eps
    return torch.where(x < 0, x.clamp_max(-eps), x.clamp_min(eps))


def adjusted_mutual_information(labels: Tensor, groups: Tensor, normalizer: str = "max") -> Tensor:
    """Adjusted mutual information of each image.

    1 for equal groupings, 0 on average for random ones. The published N-EM figures are normalised by
    the larger of the two entropies ("max"); scikit-learn's default today is their "arithmetic" mean.

    Args:
        labels: predicted labels, integers from 0, (B, H, W) or (B, N).
        groups: true groups, the same shape; pixels of group 0 are not scored.
        normalizer: "max" or "arithmetic".

    Returns:
        (B,) float64; NaN for an image without a scored pixel.

    Raises:
        InputError: an unknown normaliser.

    Source: Vinh, Epps, Bailey 2010. Equal to ``sklearn.metrics.adjusted_mutual_info_score``.
    """
    return _adjusted_mutual_information(labels, groups)[_normalizer_index(normalizer)]


def _normalizer_index(normalizer: str) -> int:
    if normalizer not in NORMALIZERS:
        raise InputError(f"normalizer={normalizer!r}: must be one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS.index(normalizer)


def adjusted_rand_index(labels: Tensor, groups: Tensor) -> Tensor:
    """Adjusted Rand index of each image: agreement on pairs of pixels, 0 on average for random groupings.

    Args:
        labels: predicted labels, integers from 0, (B, H, W) or (B, N).
        groups: true groups, the same shape; pixels of group 0 are not scored.

    Returns:
        (B,) float64; NaN for an image without a scored pixel.

    Source: Hubert and Arabie 1985. Equal to ``sklearn.metrics.adjusted_rand_score``.
    """
    table, has_score = _scored(labels, groups)
    total = table.sum((1, 2))  # (S,)
    squares = (table**2).sum((1, 2))
    rows, columns = (table.sum(2) ** 2).sum(1), (table.sum(1) ** 2).sum(1)
    # Ordered pairs of pixels: together in both, only in the true, only in the predicted grouping, in neither.
    both, only_true, only_pred = squares - total, rows - squares, columns - squares
    neither = total**2 - both - only_true - only_pred - total
    numerator = 2 * (both * neither - only_true * only_pred)
    denominator = (both + only_true) * (only_true + neither) + (both + only_pred) * (only_pred + neither)
    same = _equal(table)
    scores = torch.where(same, 1.0, numerator / denominator.masked_fill(same, 1))
    return _with_unscored(scores, has_score)


class MeanOverImages(Metric):
    """Mean of a score over the images that have one; adds up exactly over batches and processes.

    After ``compute``, ``scored`` and ``unscored`` say how many images had a score and how many had none.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    num_scores = 1

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(self.num_scores, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("scored", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("unscored", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def scores(self, labels: Tensor, groups: Tensor) -> Tensor:
        """(num_scores, B)."""
        raise NotImplementedError

    def update(self, labels: Tensor, groups: Tensor) -> None:
        """Score a batch: predicted labels and true groups, (B, H, W) or (B, N)."""
        scores = self.scores(labels, groups)
        has_score = ~scores[0].isnan()
        self.total += scores.nansum(1)
        self.scored += has_score.sum()
        self.unscored += (~has_score).sum()

    def compute(self) -> Tensor:
        """The mean, a float64 scalar; NaN where no image had a score."""
        return self.total[0] / self.scored


class AdjustedMutualInformation(MeanOverImages):
    """Mean over images of :func:`adjusted_mutual_information`.

    In a ``MetricCollection`` two of these with different normalisers share their counts.

    Args:
        normalizer: "max" (the headline) or "arithmetic".
    """

    num_scores = len(NORMALIZERS)

    def __init__(self, normalizer: str = "max") -> None:
        super().__init__()
        self.index = _normalizer_index(normalizer)

    def scores(self, labels: Tensor, groups: Tensor) -> Tensor:
        return _adjusted_mutual_information(labels, groups)

    def compute(self) -> Tensor:
        """The mean, a float64 scalar; NaN where no image had a score."""
        return self.total[self.index] / self.scored


class AdjustedRandIndex(MeanOverImages):
    """Mean over images of :func:`adjusted_rand_index`."""

    def scores(self, labels: Tensor, groups: Tensor) -> Tensor:
        return adjusted_rand_index(labels, groups).unsqueeze(0)
