"""Models, data and a score like those that a user may write, for tests."""

from typing import ClassVar

import torch
from torch import Tensor

from nem_lightning.datamodules.base import FramesDataModule, TensorFrames
from nem_lightning.headings import Heading
from nem_lightning.models.grouping import Grouping, GroupingModel, TrainingLoss, frame_pair
from nem_lightning.scores.base import Score


class NearestPixels(GroupingModel):
    """k-means on the positions of bright pixels; learns nothing."""

    headings: ClassVar = {"spread": Heading("spread", ".1f")}

    def unroll(self, frames, num_components, num_steps, num_starts, generator):
        height, width = self.image_shape[1:]
        axes = torch.arange(height, device=frames.device), torch.arange(width, device=frames.device)
        places = torch.cartesian_prod(*axes).to(frames)  # (HW, 2)
        draws = torch.rand(len(frames), num_components, 2, generator=generator, device=frames.device)
        centres = draws.to(frames) * places.new_tensor([height, width])
        for step in range(1, num_steps + 1):
            nearest = (places - centres.unsqueeze(2)).square().sum(3).argmin(1)  # (B, HW)
            gamma = torch.nn.functional.one_hot(nearest, num_components).to(frames).movedim(2, 1)  # (B, K, HW)
            taken = gamma * frame_pair(frames, step)[1].mean(1).flatten(1).unsqueeze(1)
            weight = taken.sum(2, keepdim=True)
            centres = torch.where(weight > 0, taken @ places / weight.clamp_min(1e-9), centres)
            yield Grouping(gamma.unflatten(2, (1, height, width)))

    def training_loss(self, frames: Tensor, *, epoch=0, generator=None) -> TrainingLoss:
        raise NotImplementedError("nothing is learned")

    def report(self, target, grouping):
        return {"spread": grouping.responsibilities.sum((2, 3, 4)).std()}


class Shade(GroupingModel):
    """Learns the grey of each of K vertical strips."""

    def __init__(self, image_shape, binary, num_components=3, num_steps=1, num_starts=1) -> None:
        super().__init__(image_shape, binary, num_components, num_steps, num_starts)
        self.grey = torch.nn.Parameter(torch.full((num_components,), 0.5))

    def unroll(self, frames, num_components, num_steps, num_starts, generator):
        batch, _, channels, height, width = frames.shape
        strip = torch.arange(width, device=frames.device) * num_components // width
        gamma = torch.nn.functional.one_hot(strip, num_components).T.to(frames)  # (K, W)
        gamma = gamma.view(1, num_components, 1, 1, width).expand(batch, -1, -1, height, -1)
        mean = self.grey.view(1, -1, 1, 1, 1).expand(batch, -1, channels, height, width)
        yield from [Grouping(gamma, mean)] * num_steps

    def training_loss(self, frames: Tensor, *, epoch=0, generator=None) -> TrainingLoss:
        last = self(frames)[-1]
        assert last.reconstruction is not None
        return TrainingLoss((frame_pair(frames, self.num_steps)[1] - last.reconstruction).square().mean(), lambda: last)


class MovingBars(FramesDataModule):
    """A vertical and a horizontal bar, which move one pixel a frame."""

    binary = True

    def __init__(self, num_frames: int, size: int = 12, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__(batch_size, seed)
        self.image_shape, self.num_frames = (1, size, size), num_frames

    def load(self, stage: str) -> TensorFrames:
        size, count = self.image_shape[1], 32
        places = torch.randint(size, (2, count, 1), generator=torch.Generator().manual_seed(len(stage)))
        upright, level = (places + torch.arange(self.num_frames)) % size  # (N, F) each
        groups = torch.zeros(count, self.num_frames, size, size, dtype=torch.int8)
        at = torch.arange(count).unsqueeze(1), torch.arange(self.num_frames)
        groups[(*at, slice(None), upright)] = 1
        groups[(*at, level)] = 2
        groups[(*at, level, upright)] = 0  # where they overlap
        return TensorFrames((groups > 0).byte().unsqueeze(2), groups)


class Agreement(Score):
    """The share of an object's pixels that belong to its most frequent component."""

    heading = Heading("agreement", ".2%")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("agreeing", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("scored", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.agreeing: Tensor
        self.scored: Tensor

    def update(self, labels: Tensor, groups: Tensor) -> None:
        for found, true in zip(labels, groups, strict=True):
            for group in true[true > 0].unique():
                self.agreeing += found[true == group].bincount().max()
            self.scored += (true > 0).sum()

    def compute(self) -> Tensor:
        return self.agreeing / self.scored
