"""Noise on the M-step's input. The E-step and the loss see the clean image."""

import torch
from torch import Tensor

from nem_lightning.errors import require_number


class _Corruption:
    """Noise that falls on a value with probability ``prob``."""

    def __init__(self, prob: float = 0.1) -> None:
        require_number("prob", prob, minimum=0, maximum=1)
        self.prob = prob

    def mask(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        """1 where it falls, drawn, else 0; of the image's shape."""
        return torch.empty_like(image).uniform_(generator=generator).lt_(self.prob)


class BitFlip(_Corruption):
    """Flip each binary pixel with probability ``prob``.

    Raises:
        InputError: ``prob`` outside [0, 1].
    """

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Any shape, floating-point 0 and 1; the result is on the same device, drawn from ``generator``."""
        return self.mask(image, generator).sub_(image).abs_()  # exclusive or


class MaskedUniform(_Corruption):
    """Replace each value, with probability ``prob``, by a draw from U[0, 1).

    Raises:
        InputError: ``prob`` outside [0, 1].
    """

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Any shape; the result is on the same device, drawn from ``generator``."""
        mask = self.mask(image, generator)
        noise = torch.empty_like(image).uniform_(generator=generator)
        return image + mask * (noise - image)
