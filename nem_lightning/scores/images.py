"""Scores of the reconstruction of images, and of the confidence of a grouping."""

from torch import Tensor

from nem_lightning.headings import Heading
from nem_lightning.scores.base import WeightedMean


class ReconstructionError(WeightedMean):
    """Mean over images, pixels and channels of (x - sum_k gamma_k mu_k)^2; NaN if a model has no means."""

    heading = Heading("squared error")
    higher_is_better = False

    def by_image(self, target: Tensor, reconstruction: Tensor | None) -> Tensor:
        """Score each image: (B, C, H, W), (B, C, H, W) -> (B,) float64."""
        if reconstruction is None:
            return target.new_full((len(target),), float("nan")).double()
        return (target - reconstruction).double().square().flatten(1).mean(1)

    def update(self, target: Tensor, reconstruction: Tensor | None) -> None:
        """Add a batch, (B, C, H, W) each."""
        self.total += self.by_image(target, reconstruction).sum()
        self.weight += len(target)


class Confidence(WeightedMean):
    """The largest responsibility, mean over scored pixels."""

    heading = Heading("confidence")
    higher_is_better = True

    def update(self, responsibilities: Tensor, groups: Tensor) -> None:
        """Add a batch: (B, K, 1, H, W) and (B, H, W)."""
        scored = groups > 0
        largest = responsibilities.amax(1).squeeze(1)  # (B, H, W)
        self.total += largest.double().mul(scored).sum()
        self.weight += scored.sum()
