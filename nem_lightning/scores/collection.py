"""All that is reported of one EM step, over a data set."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from nem_lightning.models.em import Iterate, NeuralEM
from nem_lightning.models.losses import StepLoss
from nem_lightning.scores.mutual_information import AdjustedMutualInformation, AdjustedRandIndex


class _WeightedMean(Metric):
    """A mean in which NaN stays NaN, in float64.

    torchmetrics' own MeanMetric leaves NaN out, or, where told not to (``nan_strategy="disable"``, 1.9.0),
    ignores the weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: int | Tensor) -> None:
        self.total += value.double() * weight
        self.weight += weight

    def compute(self) -> Tensor:
        return self.total / self.weight


class StepScores(nn.Module):
    """Means over images, which add up exactly over batches and processes.

    ======================== ==========================================================================
    ``ami_max``              adjusted mutual information, normalised by the larger entropy
    ``ami_arithmetic``       the same, normalised by the mean entropy
    ``ari``                  adjusted Rand index
    ``loss``                 equation 5 of this step, nats per image
    ``loss_intra``           its first term, nats per image
    ``loss_inter``           its second term before lambda, nats per image
    ``reconstruction_error`` mean over pixels and channels of (x - sum_k gamma_k mu_k)^2
    ``confidence``           largest responsibility, mean over scored pixels
    ``log_likelihood``       equation 1, nats per image
    ======================== ==========================================================================
    """

    def __init__(self) -> None:
        super().__init__()
        self.groupings = MetricCollection(
            {
                "ami_max": AdjustedMutualInformation("max"),
                "ami_arithmetic": AdjustedMutualInformation("arithmetic"),
                "ari": AdjustedRandIndex(),
            },
            compute_groups=[["ami_max", "ami_arithmetic"], ["ari"]],
        )
        names = ("loss", "loss_intra", "loss_inter", "reconstruction_error", "confidence", "log_likelihood")
        self.means = nn.ModuleDict({name: _WeightedMean() for name in names})

    @property
    def names(self) -> list[str]:
        """Of all scores."""
        return [*self.groupings.keys(keep_base=True), *self.means]

    @torch.no_grad()
    def update(self, em: NeuralEM, image: Tensor, groups: Tensor, iterate: Iterate, loss: StepLoss) -> None:
        """Add a batch.

        Args:
            em: for the likelihood.
            image: (B, C, H, W), clean.
            groups: (B, H, W), 0 where not scored.
            iterate: after the step.
            loss: of the step.
        """
        self.groupings.update(iterate.labels, groups)
        batch = len(image)
        self.means["loss"].update(loss.total, batch)
        self.means["loss_intra"].update(loss.intra, batch)
        self.means["loss_inter"].update(loss.inter, batch)
        self.means["reconstruction_error"].update(reconstruction_error(image, iterate), batch)
        scored = groups != 0
        if scored.any():
            largest = iterate.responsibilities.amax(1).squeeze(1)  # (B, H, W)
            self.means["confidence"].update(largest[scored].mean(), scored.sum())
        self.means["log_likelihood"].update(em.log_likelihood(image, iterate.params).mean(), batch)

    def compute(self) -> dict[str, Tensor]:
        """Each score by its name, a scalar; NaN where no image had one."""
        return {**self.groupings.compute(), **{name: mean.compute() for name, mean in self.means.items()}}

    def reset(self) -> None:
        """Start over."""
        self.groupings.reset()
        for mean in self.means.values():
            mean.reset()

    @property
    def scored(self) -> Tensor:
        """How many of this process's images had a scored pixel, since the last reset."""
        return self.groupings["ari"].scored

    @property
    def unscored(self) -> Tensor:
        """How many of them had none."""
        return self.groupings["ari"].unscored


@torch.no_grad()
def reconstruction_error(image: Tensor, iterate: Iterate) -> Tensor:
    """Mean over batch, pixels and channels of (x - sum_k gamma_k mu_k)^2, a scalar."""
    reconstruction = (iterate.responsibilities * iterate.mean).sum(1)  # (B, C, H, W)
    return (image - reconstruction).square().mean()
