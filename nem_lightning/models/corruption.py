"""Noise on the M-step's input. The E-step and the loss see the clean image."""

import torch
from torch import Tensor

from nem_lightning.errors import require_flag, require_number


class Corruption:
    """Noise that falls on a value with probability ``prob``."""

    def __init__(self, prob: float = 0.1) -> None:
        require_number("prob", prob, minimum=0, maximum=1)
        self.prob = prob

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give the image with noise: any shape; the result is on the same device, drawn from ``generator``."""
        raise NotImplementedError

    def mask(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        """1 where it falls, drawn, else 0; of the image's shape."""
        return torch.empty_like(image).uniform_(generator=generator).lt_(self.prob)


class BitFlip(Corruption):
    """Flip each binary pixel with probability ``prob``.

    Raises:
        InputError: ``prob`` outside [0, 1].
    """

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Any shape, floating-point 0 and 1; the result is on the same device, drawn from ``generator``."""
        return self.mask(image, generator).sub_(image).abs_()  # exclusive or


class MaskedUniform(Corruption):
    """Replace each value, with probability ``prob``, by a draw from U[0, 1).

    Raises:
        InputError: ``prob`` outside [0, 1].
    """

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Any shape; the result is on the same device, drawn from ``generator``."""
        mask = self.mask(image, generator)
        noise = torch.empty_like(image).uniform_(generator=generator)
        return image + mask * (noise - image)


def noise_for(binary: bool, prob: float = 0.1) -> Corruption:
    """Give the noise for a kind of pixels: bit flips for binary ones, masked uniform noise for real ones.

    Args:
        binary: whether pixels are 0 or 1.
        prob: of a value to be noisy.

    Raises:
        InputError: ``prob`` outside [0, 1], or binary is not true or false.
    """
    require_flag("binary", binary)
    return BitFlip(prob) if binary else MaskedUniform(prob)
