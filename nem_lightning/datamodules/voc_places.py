"""Pascal VOC's pixels as points: three colours, and three numbers that say where the pixel is."""

import functools
from typing import ClassVar

import torch
from torch import Tensor

from nem_lightning.datamodules.base import TensorFrames
from nem_lightning.datamodules.voc import VOCDataModule

MEAN, SPREAD = 0.5, 0.2
"""Mean and standard deviation of each channel, so that nearly all values lie in [0, 1]."""


class VOCPlacesDataModule(VOCDataModule):
    """The images and groups of :class:`VOCDataModule`, with six channels for each pixel instead of three.

    The first three are the colours, whitened: over all training pixels they are uncorrelated, and of one variance. So
    hue counts as much as brightness. Of all whitenings, this is the one that stays closest to red, green and blue. The
    other three are the same for every image: the row, the column, and the distance from the middle of the image,
    because what is photographed is often in the middle. Every channel has mean ``MEAN`` and standard deviation
    ``SPREAD``, so colours and places count alike.

    Arguments and errors are those of :class:`VOCDataModule`.

    Source: Kessy, Lewin and Strimmer 2018, section 3, for the whitening (ZCA).
    """

    channels: ClassVar[int] = 6

    def load(self, stage: str) -> TensorFrames:
        images, (mean, whitening) = super().load(stage), self._whitening
        pixels = images.frames[:, 0] / images.scale - mean[:, None, None]
        colours = torch.einsum("nchw,cd->ndhw", pixels, whitening)
        points = torch.cat([colours, places(*self.image_shape[1:]).expand(len(colours), -1, -1, -1)], 1)
        return TensorFrames(MEAN + SPREAD * points[:, None], images.groups)

    @functools.cached_property
    def _whitening(self) -> tuple[Tensor, Tensor]:
        training = super().load("train")
        return whitening_of(training.frames[:, 0] / training.scale)


def whitening_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """Give the mean colour, (C,), and the inverse root of the colours' covariance, (C, C), of images (N, C, H, W).

    Colours that do not vary, as in grey photographs, stay near 0.
    """
    colours = images.transpose(0, 1).flatten(1).double()  # (C, NHW)
    variances, axes = torch.linalg.eigh(torch.cov(colours, correction=0))
    whitening = axes / variances.clamp_min(1e-6).sqrt() @ axes.T
    return colours.mean(1).to(images.dtype), whitening.to(images.dtype)


def places(height: int, width: int) -> Tensor:
    """Give row, column, and distance from the middle, each of mean 0 and variance 1 over the image: (3, H, W)."""
    row, column = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    found = torch.stack([row, column, torch.hypot(row, column)])
    deviation, mean = torch.std_mean(found, (1, 2), correction=0, keepdim=True)
    return (found - mean) / deviation.clamp_min(1e-6)
