"""Adjusted mutual information: how well a grouping agrees with the true one."""

from typing import NamedTuple

import torch
from torch import Tensor

from nem_lightning.errors import InputError
from nem_lightning.headings import Heading
from nem_lightning.scores.base import MeanOverImages, equal, scored_tables, with_unscored

NORMALIZERS = ("max", "arithmetic")
_CHUNK = 2**22  # float64 entries of the hypergeometric sum held at a time (32 MiB), unless one image needs more


class _Information(NamedTuple):
    """Mutual information and entropies of each image, (B,) float64, in nats."""

    mutual: Tensor
    expected: Tensor
    entropy_true: Tensor
    entropy_pred: Tensor


def _entropy(counts: Tensor) -> Tensor:
    """Give the entropy of labellings with these counts, (B, G) -> (B,)."""
    p = counts / counts.sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1)


def _expected_mutual_information(rows: Tensor, columns: Tensor, total: Tensor) -> Tensor:
    """Give the mean mutual information over all tables with these margins (Vinh et al. 2010, equation 24a).

    For each pair of a true cluster of a pixels and a predicted cluster of b pixels, sum over the number n
    of shared pixels: n/N log(n N / (a b)) times the hypergeometric probability of n.

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
    """Give entropies, mutual information and its expectation: (B, G, K) -> (B,) each."""
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


def _adjusted_mutual_information(labels: Tensor, groups: Tensor) -> Tensor:
    """Give the score by every normaliser: (B, ...), (B, ...) -> (len(NORMALIZERS), B)."""
    table, has_score = scored_tables(labels, groups)
    if not len(table):
        return torch.full((len(NORMALIZERS), len(has_score)), torch.nan, dtype=torch.float64, device=groups.device)
    mutual, expected, entropy_true, entropy_pred = _information(table)
    entropies = {
        "max": torch.maximum(entropy_true, entropy_pred),
        "arithmetic": (entropy_true + entropy_pred) / 2,
    }
    normalizer = torch.stack([entropies[name] for name in NORMALIZERS])  # (2, S)
    scores = _away_from_zero(mutual - expected) / _away_from_zero(normalizer - expected)
    # Equal groupings score 1, even if chance gives them too (0 / 0). Otherwise, a labelling with only one cluster
    # has no information and scores 0.
    one_group, one_label = (table.sum(2) > 0).sum(1) == 1, (table.sum(1) > 0).sum(1) == 1  # (S,)
    scores = torch.where(one_group | one_label, 0.0, scores)
    scores = torch.where(equal(table), 1.0, scores)
    return with_unscored(scores, has_score)


def _away_from_zero(x: Tensor) -> Tensor:
    """Move values at least one float64 epsilon away from 0, keeping the sign (0: positive), as scikit-learn does."""
    eps = torch.finfo(torch.float64).eps
    return torch.where(x < 0, x.clamp_max(-eps), x.clamp_min(eps))


def adjusted_mutual_information(labels: Tensor, groups: Tensor, normalizer: str = "max") -> Tensor:
    """Give the adjusted mutual information of each image.

    It is 1 for equal groupings, 0 on average for random ones. The published N-EM scores are normalised
    by the larger of the two entropies ("max"); scikit-learn's default is their "arithmetic" mean.

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


class AdjustedMutualInformation(MeanOverImages):
    """Mean over images of :func:`adjusted_mutual_information`.

    Args:
        normalizer: "max" (the main score) or "arithmetic".

    Raises:
        InputError: an unknown normaliser.
    """

    num_scores = len(NORMALIZERS)
    shares_counts = True

    def __init__(self, normalizer: str = "max") -> None:
        super().__init__()
        self.index = _normalizer_index(normalizer)
        self.heading = Heading(f"AMI ({normalizer})")

    def all_by_image(self, labels: Tensor, groups: Tensor) -> Tensor:
        """Give the score by each normaliser, (2, B)."""
        return _adjusted_mutual_information(labels, groups)

    def by_image(self, labels: Tensor, groups: Tensor) -> Tensor:
        """Score each image: (B, H, W), (B, H, W) -> (B,) float64, NaN for an image without a score."""
        return self.all_by_image(labels, groups)[self.index]

    def compute(self) -> Tensor:
        """Give the mean, a float64 scalar; NaN if no image had a score."""
        return self.total[self.index] / self.scored
