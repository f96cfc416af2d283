"""Slot Attention: components compete for the pixels' features by attention, and are decoded one by one.

Shapes: B images, K slots (the components), T iterations (the steps), C channels, H by W pixels, D slot size, N features
of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nem_lightning.errors import require, require_count
from nem_lightning.models import starts
from nem_lightning.models.grouping import Grouping, GroupingModel, TrainingLoss


@dataclass(frozen=True, kw_only=True)
class Slots(Grouping):
    """The grouping after an iteration. Its responsibilities are the decoder's masks."""

    mean: Tensor  # pyright: ignore[reportGeneralTypeIssues]  # not None here
    """(B, K, C, H, W)."""
    slots: Tensor
    """(B, K, D)."""


class SlotAttention(GroupingModel):
    """Explain an image by K slots.

    A convolutional encoder gives N features. Slots begin as draws of one learned Gaussian, and each iteration

        attention = softmax over slots of (k(features) q(slots) / sqrt(D)),
        slots = GRU(mean of v(features), weighted by attention;  slots),   then   slots += MLP(slots).

    A decoder gives for each slot an image and a mask, and a softmax over slots makes the masks sum to 1. Training
    minimises the squared error of the sum of images, weighted by masks, after the last iteration.

    The network is smaller than the published one, so that a CPU can train it: features at half the resolution and a
    decoder that begins at a quarter of it.

    Args:
        image_shape: (C, H, W); H and W must be multiples of 4.
        slot_size: D.
        channels: of the convolutions.
        num_components: K.
        num_steps: T; 3 as published.
        num_starts: how many times the slots are drawn in tests and pictures; 1 as published. For each image, those with
            the smallest squared error after the last iteration are kept.

    Raises:
        InputError: a number below 1, or an image of another size.

    Source: Locatello et al. 2020, Object-Centric Learning with Slot Attention, algorithm 1 and section 2.2.
    """

    stills_only = True

    def __init__(
        self,
        image_shape: Sequence[int],
        slot_size: int = 64,
        channels: int = 32,
        num_components: int = 3,
        num_steps: int = 3,
        num_starts: int = 1,
    ) -> None:
        super().__init__(image_shape, False, num_components, num_steps, num_starts)
        require_count("slot_size", slot_size)
        require_count("channels", channels)
        colors, height, width = self.image_shape
        require(
            height % 4 == 0 and width % 4 == 0,
            f"image_shape={list(self.image_shape)}: height and width must be multiples of 4",
        )
        self.encoder = nn.Sequential(
            nn.Conv2d(colors, channels, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 5, padding=2),
            nn.ReLU(),
            PositionEmbedding(channels, height // 2, width // 2),
            nn.Flatten(2),
        )
        self.features = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, slot_size), nn.ReLU(), nn.Linear(slot_size, slot_size)
        )
        self.first_mean = nn.Parameter(torch.empty(slot_size))
        self.first_log_scale = nn.Parameter(torch.empty(slot_size))
        bound = (6 / (1 + slot_size)) ** 0.5  # Glorot's
        nn.init.uniform_(self.first_mean, -bound, bound)
        nn.init.uniform_(self.first_log_scale, -bound, bound)
        self.norm_features, self.norm_slots, self.norm_hidden = (nn.LayerNorm(slot_size) for _ in range(3))
        self.to_query, self.to_key, self.to_value = (nn.Linear(slot_size, slot_size, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(slot_size, slot_size)
        self.mlp = nn.Sequential(nn.Linear(slot_size, 2 * slot_size), nn.ReLU(), nn.Linear(2 * slot_size, slot_size))
        self.decoder = nn.Sequential(
            PositionEmbedding(slot_size, height // 4, width // 4),
            nn.ConvTranspose2d(slot_size, channels, 5, stride=2, padding=2, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels, 5, stride=2, padding=2, output_padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, colors + 1, 3, padding=1),
        )

    def start(self, batch: int, num_components: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the slots before the first iteration, (B, K, D)."""
        like = self.first_mean
        noise = torch.randn(batch, num_components, len(like), dtype=like.dtype, device=like.device, generator=generator)
        return like + self.first_log_scale.exp() * noise

    def iterate(self, slots: Tensor, image: Tensor, num_steps: int) -> Iterator[Tensor]:
        """Give the slots, (B, K, D), after each of T iterations on an image, (B, C, H, W)."""
        features = self.norm_features(self.features(self.encoder(image).transpose(1, 2)))  # (B, N, D)
        keys, values = self.to_key(features), self.to_value(features)
        for _ in range(num_steps):
            queries = self.to_query(self.norm_slots(slots)) / slots.shape[2] ** 0.5
            attention = (queries @ keys.transpose(1, 2)).softmax(1) + 1e-8  # (B, K, N); slots compete
            updates = attention / attention.sum(2, keepdim=True) @ values
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).unflatten(0, slots.shape[:2])
            slots = slots + self.mlp(self.norm_hidden(slots))
            yield slots

    def decode(self, slots: Tensor) -> Slots:
        """Give the images and masks of slots, (B, K, D)."""
        _, height, width = self.image_shape
        grid = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, height // 4, width // 4)
        decoded = self.decoder(grid).unflatten(0, slots.shape[:2])  # (B, K, C + 1, H, W)
        mean, mask = decoded[:, :, :-1], decoded[:, :, -1:]
        return Slots(responsibilities=mask.softmax(1), mean=mean, slots=slots)

    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Slots]:
        """Yield the groupings after iterations 1 to T, for each image from its best start."""
        image = frames[:, 0]

        def steps(start: Slots) -> Iterator[Slots]:
            return map(self.decode, self.iterate(start.slots, image, num_steps))

        return starts.steps_from_best(
            lambda: self.decode(self.start(len(image), num_components, generator)),
            steps,
            lambda end: self.errors(image, end),
            num_starts,
        )

    def errors(self, image: Tensor, grouping: Grouping) -> Tensor:
        """Give the squared error of each image, summed over channels and pixels: (B, C, H, W) -> (B,)."""
        assert grouping.reconstruction is not None
        return (image - grouping.reconstruction).square().sum((1, 2, 3))

    def training_loss(
        self, frames: Tensor, *, epoch: int = 0, generator: torch.Generator | None = None
    ) -> TrainingLoss:
        """Give the squared error after the last iteration, summed over an image, mean over the batch."""
        self.check_frames(frames, self.num_steps)
        image = frames[:, 0]
        *_, slots = self.iterate(self.start(len(image), self.num_components, generator), image, self.num_steps)
        last = self.decode(slots)
        return TrainingLoss(self.errors(image, last).mean(), lambda: last)


class PositionEmbedding(nn.Module):
    """Add a learned linear map of each position's distances to the four borders: (N, D, H, W) -> (N, D, H, W).

    Args:
        size: D.
        height: H.
        width: W.
    """

    grid: Tensor

    def __init__(self, size: int, height: int, width: int) -> None:
        super().__init__()
        down, across = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([down, across, 1 - down, 1 - across], 2))  # (H, W, 4)
        self.linear = nn.Linear(4, size)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.linear(self.grid).permute(2, 0, 1)
