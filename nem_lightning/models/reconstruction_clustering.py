"""Reconstruction Clustering: EM with a denoising auto-encoder in place of the M-step.

Shapes: B images, K components, T steps, C channels, H by W pixels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nem_lightning.errors import require_count, require_flag
from nem_lightning.headings import Heading
from nem_lightning.models import starts
from nem_lightning.models.corruption import Corruption, SaltAndPepper
from nem_lightning.models.grouping import Grouping, GroupingModel, TrainingLoss
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.m_steps import ACTIVATIONS, require_activation

GAINS = {"sigmoid": 4.0, "tanh": 1.0, "relu": math.sqrt(2)}
"""Of the hidden units' first weights, by activation, as in the author's library."""


@dataclass(frozen=True, kw_only=True)
class Clustering(Grouping):
    """The grouping after a step, with the logits of mu."""

    logits: Tensor
    """(B, K, C, H, W)."""


class ReconstructionClustering(GroupingModel):
    """Cluster the pixels of binary images by a denoising auto-encoder that was trained to restore images.

    The auto-encoder has one hidden layer: DAE(x) = sigmoid(W' h(W x + b) + b'). Training restores images from noise.
    Grouping does not train: from a random gamma, each step is

        mu_k = DAE(gamma_k x),      gamma_k proportional to P(x | mu_k), with pi uniform.

    The first weights are uniform in +-gain sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010), with the gains of the
    author's library: ``GAINS``, and 1 / sqrt(6) for W'; the first biases are N(0, 0.1^2). EM depends on them: on Bars,
    PyTorch's own first weights give an AMI of 0.84, these 0.94, and both restore single bars without an error.

    It has no state: a step depends on the step before only by gamma. So sequences are not for this model.

    Args:
        image_shape: (C, H, W).
        hidden_size: number of hidden units, at least 1.
        activation: h, of the hidden units: "sigmoid", "tanh" or "relu".
        corruption: noise on the images in training; by default salt and pepper with probability 0.4.
        hard: whether gamma is made one-hot after each step, as published for auto-encoders that were trained on images
            of several objects. (Soft ones even out.)
        num_components: K.
        num_steps: T; 10 as published.
        num_starts: how many times EM starts in tests and pictures; 1 as published. For each image, the start with the
            lowest :func:`~nem_lightning.models.starts.energy` after the last step is kept.

    Raises:
        InputError: a number below 1, or an unknown activation.

    Source: Greff, Srivastava and Schmidhuber 2015, Binding via Reconstruction Clustering.
    """

    headings: ClassVar[Mapping[str, Heading]] = {"loss": Heading("loss (nats)", ".5g")}
    stills_only = True

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_size: int = 500,
        activation: str = "tanh",
        corruption: Corruption | None = None,
        hard: bool = False,
        num_components: int = 3,
        num_steps: int = 10,
        num_starts: int = 1,
    ) -> None:
        super().__init__(image_shape, True, num_components, num_steps, num_starts)
        require_count("hidden_size", hidden_size)
        require_flag("hard", hard)
        require_activation(activation)
        pixels = math.prod(self.image_shape)
        self.encoder = nn.Linear(pixels, hidden_size)
        self.decoder = nn.Linear(hidden_size, pixels)
        nn.init.xavier_uniform_(self.encoder.weight, GAINS[activation])
        nn.init.xavier_uniform_(self.decoder.weight, 1 / math.sqrt(6))
        for layer in (self.encoder, self.decoder):
            nn.init.normal_(layer.bias, std=0.1)
        self.activation = activation
        self.corruption = SaltAndPepper(0.4) if corruption is None else corruption
        self.hard = hard
        self.likelihood = Bernoulli()

    def restore(self, images: Tensor) -> Tensor:
        """Give the logits of DAE(x), of the same shape: (..., C, H, W)."""
        hidden = ACTIVATIONS[self.activation](self.encoder(images.flatten(-3)))
        return self.decoder(hidden).unflatten(-1, self.image_shape)

    def denoising(self, image: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Restore images from noise: (B, C, H, W) -> the cross-entropy in nats an image, and logits (B, C, H, W)."""
        logits = self.restore(self.corruption(image, generator))
        return F.binary_cross_entropy_with_logits(logits, image, reduction="sum") / len(image), logits

    def training_loss(
        self, frames: Tensor, *, epoch: int = 0, generator: torch.Generator | None = None
    ) -> TrainingLoss:
        """Give the cross-entropy between images and their restorations from noise, in nats an image."""
        self.check_frames(frames, self.num_steps)
        image = frames[:, 0]
        loss, logits = self.denoising(image, generator)
        whole = torch.ones_like(image[:, None, :1])  # one component takes all pixels
        return TrainingLoss(loss, lambda: Grouping(whole, self.likelihood.mean(logits).unsqueeze(1)))

    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Clustering]:
        """Yield the groupings after steps 1 to T, for each image from its best start."""
        image = frames[:, 0]
        return starts.steps_from_best(
            lambda: Grouping(starts.noise(image, num_components, generator)),
            lambda start: self.steps(start, image, num_steps),
            lambda end: starts.energy(self.likelihood, image, end.logits, end.responsibilities),
            num_starts,
        )

    def steps(self, grouping: Grouping, image: Tensor, num_steps: int) -> Iterator[Clustering]:
        """Take T steps from a grouping. ``image`` is (B, C, H, W)."""
        for _ in range(num_steps):
            logits = self.restore(grouping.responsibilities * image.unsqueeze(1))
            gamma = self.likelihood.log_prob(image.unsqueeze(1), logits).softmax(1)
            if self.hard:
                gamma = torch.zeros_like(gamma).scatter_(1, gamma.argmax(1, keepdim=True), 1)
            grouping = Clustering(responsibilities=gamma, mean=self.likelihood.mean(logits), logits=logits)
            yield grouping

    def report(self, target: Tensor, grouping: Grouping) -> dict[str, Tensor]:
        """Give the training loss of images, with the same noise each time, for early stopping as published."""
        return {"loss": self.denoising(target, torch.Generator(target.device).manual_seed(0))[0]}
