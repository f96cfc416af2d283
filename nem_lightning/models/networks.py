"""Encoders and decoders for :class:`~nem_lightning.models.m_steps.RecurrentMStep`.

Shapes: N images (a batch times its components), C channels, H by W pixels, D state size.
"""

import itertools
import math
from collections.abc import Sequence

from torch import nn

from nem_lightning.errors import require, require_count, require_flag
from nem_lightning.models.grouping import checked_shape


class DenseEncoder(nn.Sequential):
    """One fully connected layer of ELU units with layer normalisation: (N, C, H, W) -> (N, features).

    Args:
        image_shape: (C, H, W).
        features: of the layer, at least 1.

    Raises:
        InputError: a number below 1.
    """

    def __init__(self, image_shape: Sequence[int], features: int = 512) -> None:
        require_count("features", features)
        pixels = math.prod(checked_shape(image_shape))
        super().__init__(nn.Flatten(), nn.Linear(pixels, features), nn.LayerNorm(features), nn.ELU())


class DenseDecoder(nn.Sequential):
    """A fully connected layer of ReLU units with layer normalisation, then a linear layer: (N, D) -> (N, C, H, W).

    Args:
        image_shape: (C, H, W).
        state_size: D, at least 1.
        features: of the first layer, at least 1.

    Raises:
        InputError: a number below 1.
    """

    def __init__(self, image_shape: Sequence[int], state_size: int, features: int = 512) -> None:
        require_count("state_size", state_size)
        require_count("features", features)
        shape = checked_shape(image_shape)
        layers = [nn.Linear(state_size, features), nn.LayerNorm(features), nn.ReLU()]
        super().__init__(*layers, nn.Linear(features, math.prod(shape)), nn.Unflatten(1, shape))


class ConvEncoder(nn.Sequential):
    """Convolutions that each halve the image, then a fully connected layer: (N, C, H, W) -> (N, features).

    Each layer has ELU units and layer normalisation.

    Args:
        image_shape: (C, H, W); H and W must be multiples of 2^L for L convolutions.
        channels: of each 4 x 4 convolution with stride 2.
        features: of the fully connected layer, at least 1.
        normalize_input: whether to normalise each input image to mean 0 and variance 1.

    Raises:
        InputError: a number below 1, no convolution, or an image that cannot be halved so often.

    Source: van Steenkiste et al. 2018 and the authors' code of Greff et al. 2017 for flying shapes and flying MNIST.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        features: int = 512,
        normalize_input: bool = False,
    ) -> None:
        require_flag("normalize_input", normalize_input)
        require_count("features", features)
        input_channels, *_ = checked_shape(image_shape)
        height, width = _smallest(image_shape, channels)
        layers: list[nn.Module] = [nn.GroupNorm(1, input_channels, affine=False)] if normalize_input else []
        for before, after in itertools.pairwise((input_channels, *channels)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(1, after), nn.ELU()]
        layers += [nn.Flatten(), nn.Linear(channels[-1] * height * width, features), nn.LayerNorm(features), nn.ELU()]
        super().__init__(*layers)


class ConvDecoder(nn.Sequential):
    """Two fully connected layers, then convolutions after each doubling of the image: (N, D) -> (N, C, H, W).

    Each layer but the last has ReLU units and layer normalisation. Images are doubled by nearest-neighbour up-sampling,
    and each convolution is 4 x 4. The last layer is linear: logits or means.

    Args:
        image_shape: (C, H, W); H and W must be multiples of 2^L for L convolutions.
        state_size: D, at least 1.
        channels: before each convolution.
        features: of the first fully connected layer, at least 1.

    Raises:
        InputError: a number below 1, no convolution, or an image that cannot be halved so often.

    Source: as :class:`ConvEncoder`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        state_size: int,
        channels: Sequence[int] = (64, 32),
        features: int = 512,
    ) -> None:
        require_count("state_size", state_size)
        require_count("features", features)
        output_channels, *_ = checked_shape(image_shape)
        height, width = _smallest(image_shape, channels)
        units = channels[0] * height * width
        layers: list[nn.Module] = [nn.Linear(state_size, features), nn.LayerNorm(features), nn.ReLU()]
        layers += [nn.Linear(features, units), nn.LayerNorm(units), nn.ReLU()]
        layers.append(nn.Unflatten(1, (channels[0], height, width)))
        for before, after in itertools.pairwise((*channels, output_channels)):
            layers += [nn.Upsample(scale_factor=2), nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(before, after, 4)]
            layers += [nn.GroupNorm(1, after), nn.ReLU()]
        super().__init__(*layers[:-2])  # the last convolution is linear


def _smallest(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    """Give height and width after all halvings."""
    _, height, width = checked_shape(image_shape)
    require(len(channels) > 0, "channels=[]: must have one number for each convolution")
    for count in channels:
        require_count("channels", count)
    parts = 2 ** len(channels)
    require(
        height % parts == 0 and width % parts == 0,
        f"image_shape={list(image_shape)}: height and width must be multiples of {parts} for {len(channels)} "
        "convolutions",
    )
    return height // parts, width // parts
