"""Encoders and decoders for the M-steps :class:`~nem_lightning.models.m_steps.RecurrentMStep` and ``GatedMStep``.

Shapes: N images (a batch times its components), C channels, H by W pixels, D state size.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
            layers += [DoublingConv2d(before, after), nn.GroupNorm(1, after), nn.ReLU()]
        super().__init__(*layers[:-2])  # the last convolution is linear


class DoublingConv2d(nn.Conv2d):
    """Doubles an image by nearest-neighbour up-sampling, then convolves it: (N, C, H, W) -> (N, C', 2 H, 2 W).

    The convolution is 4 x 4, and keeps the size: the doubled image gets 1 row and column of zeros before, and 2 after.
    An input pixel is 2 x 2 equal pixels of the doubled image, so weights that meet the same input pixel are added up
    first. What is left is a transposed 5 x 5 convolution with stride 2: the same numbers, with 25 multiplications for
    each input pixel instead of 64.

    Args:
        in_channels: C.
        out_channels: C'.

    Source: the up-sampling layers of the authors' code.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4)

    def forward(self, input: Tensor) -> Tensor:
        """Double and convolve: (N, C, H, W) -> (N, C', 2 H, 2 W)."""
        padded = nn.functional.pad(self.weight, (1, 1, 1, 1))
        sums = nn.functional.avg_pool2d(padded, 2, stride=1, divisor_override=1)  # (C', C, 5, 5)
        kernel = sums.flip(2, 3).transpose(0, 1)
        return nn.functional.conv_transpose2d(input, kernel, self.bias, stride=2, padding=2, output_padding=1)


class SpriteDecoder(nn.Module):
    """Draws one object of any look at a place that may be uncertain: (N, D) -> (N, C, H, W).

    A network gives a patch of p by p pixels, with values m in [0, 1], and two distributions: the row and the column of
    the patch's upper left corner. The image is the patch's expected value over all places,

        mean[c, i, j] = sum_(u, v) row(u) column(v) m[c, i - u, j - v],

    and 0 if no place reaches a pixel. So a component cannot show two objects that are further apart than a patch:
    with half of its probability at each, it would show both half as bright.

    Args:
        image_shape: (C, H, W).
        state_size: D, at least 1.
        patch_size: p, at least 1 and at most H and W. The largest object must fit in.
        features: of the network's first layer (ReLU units with layer normalisation), at least 1.
        binary: whether the output is logits, of means squeezed to [``EDGE``, 1 - ``EDGE``]; or the means.

    Raises:
        InputError: a number out of its range, or a flag that is not true or false.

    Source: after the flexible sprites of Jojic and Frey 2001, whose places are also discrete random variables.
    """

    EDGE = 1e-4

    row_places: Tensor
    column_places: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        state_size: int,
        patch_size: int = 12,
        features: int = 256,
        binary: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = checked_shape(image_shape)
        for name, count in (("state_size", state_size), ("patch_size", patch_size), ("features", features)):
            require_count(name, count)
        require_flag("binary", binary)
        require(
            patch_size <= min(height, width),
            f"patch_size={patch_size}: must be at most the height and the width of image_shape={list(image_shape)}",
        )
        self.patch_shape = (channels, patch_size, patch_size)
        self.counts = (height - patch_size + 1, width - patch_size + 1)
        self.binary = binary
        self.features = nn.Sequential(nn.Linear(state_size, features), nn.LayerNorm(features), nn.ReLU())
        self.place = nn.Linear(features, sum(self.counts))
        self.patch = nn.Linear(features, math.prod(self.patch_shape))
        self.register_buffer("row_places", _places(height, patch_size), persistent=False)
        self.register_buffer("column_places", _places(width, patch_size), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """Draw: (N, D) -> (N, C, H, W)."""
        features = self.features(state)
        precision = torch.promote_types(features.dtype, torch.float32)
        rows, columns = self.place(features).to(precision).split(self.counts, 1)
        patch = self.patch(features).to(precision).sigmoid().unflatten(1, self.patch_shape)  # (N, C, p, p)
        with torch.autocast(state.device.type, enabled=False):  # half precision would give means above 1
            down = _spread(rows, self.row_places)  # (N, 1, H, p)
            across = _spread(columns, self.column_places)  # (N, 1, W, p)
            mean = (down @ patch @ across.transpose(2, 3)).clamp(0, 1)
        return torch.logit(self.EDGE + (1 - 2 * self.EDGE) * mean) if self.binary else mean


class ConstantDecoder(nn.Linear):
    """Gives each channel one value, the same at every pixel: (N, D) -> (N, C, H, W).

    Components are then points in C dimensions, and grouping is by how far each pixel is from each point.

    Args:
        image_shape: (C, H, W).
        state_size: D, at least 1.

    Raises:
        InputError: a number below 1.
    """

    def __init__(self, image_shape: Sequence[int], state_size: int) -> None:
        require_count("state_size", state_size)
        channels, self.height, self.width = checked_shape(image_shape)
        super().__init__(state_size, channels)

    def forward(self, input: Tensor) -> Tensor:
        """Decode: (N, D) -> (N, C, H, W)."""
        return super().forward(input)[:, :, None, None].expand(-1, -1, self.height, self.width)


def _places(side: int, patch_size: int) -> Tensor:
    """Give for each row of the image and each row of a patch the place of the patch at which the two rows meet.

    If there is none, give the number of places. Integers, (side, patch_size).
    """
    place = torch.arange(side).unsqueeze(1) - torch.arange(patch_size)
    count = side - patch_size + 1
    return place.where((place >= 0) & (place < count), count)


def _spread(logits: Tensor, places: Tensor) -> Tensor:
    """Give the matrix that averages a patch over its places: (N, count) -> (N, 1, side, patch_size)."""
    return nn.functional.pad(logits.softmax(1), (0, 1))[:, places].unsqueeze(1)


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
