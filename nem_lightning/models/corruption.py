"""Noise on the M-step's input. The E-step and the loss see the clean image."""

import torch
from torch import Tensor

from nem_lightning.errors import require_flag, require_number


class Corruption:
    """Noise that is applied to each value with probability ``prob``."""

    def __init__(self, prob: float = 0.1) -> None:
        require_number("prob", prob, minimum=0, maximum=1)
        self.prob = prob

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add noise, drawn from ``generator``, to an image of any shape. The result is on the image's device."""
        raise NotImplementedError

    def mask(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw the mask, of the image's shape: 1 with probability ``prob``, else 0."""
        return torch.empty_like(image).uniform_(generator=generator).lt_(self.prob)


class BitFlip(Corruption):
    """Flip each binary pixel with probability ``prob``.

    Raises:
        InputError: ``prob`` outside [0, 1].
    """

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Flip pixels of an image of any shape, floating-point 0 and 1. The result is on the image's device."""
        return self.mask(image, generator).sub_(image).abs_()  # mask XOR image


class MaskedUniform(Corruption):
    """Replace each value, with probability ``prob``, by a draw from U[0, 1).

    Raises:
        InputError: ``prob`` outside [0, 1].
    """

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add noise to an image of any shape. The result is on the image's device."""
        mask = self.mask(image, generator)
        noise = torch.empty_like(image).uniform_(generator=generator)
        return image + mask * (noise - image)


class SaltAndPepper(Corruption):
    """Set each value, with probability ``prob``, to 0 or 1, each as likely.

    Raises:
        InputError: ``prob`` outside [0, 1].
    """

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add noise to an image of any shape. The result is on the image's device."""
        draw = torch.empty_like(image).uniform_(generator=generator)
        return image.where(draw >= self.prob, (draw < self.prob / 2).to(image))


def noise_for(binary: bool, prob: float = 0.1) -> Corruption:
    """Give the noise for a kind of pixels: bit flips for binary ones, masked uniform noise for real ones.

    Args:
        binary: whether pixels are 0 or 1.
        prob: the probability that a value is noisy.

    Raises:
        InputError: ``prob`` outside [0, 1], or binary is not true or false.
    """
    require_flag("binary", binary)
    return BitFlip(prob) if binary else MaskedUniform(prob)
