"""Images, groupings and true groups as arrays of colours."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nem_lightning.models.grouping import Grouping, groups_of_step

COLOURS = np.array(
    [
        (0.89, 0.20, 0.18),
        (0.20, 0.63, 0.27),
        (0.16, 0.45, 0.85),
        (0.98, 0.75, 0.14),
        (0.60, 0.31, 0.77),
        (0.10, 0.74, 0.81),
        (0.94, 0.45, 0.70),
        (0.55, 0.37, 0.22),
    ]
)
"""One colour for each component or object; 9 to 16 are these darker, 17 to 24 lighter, then they repeat."""


def colours(count: int) -> np.ndarray:
    """Give ``count`` colours, (count, 3): red, green, blue in [0, 1]."""
    shades = np.concatenate([COLOURS, 0.5 * COLOURS, 0.4 * COLOURS + 0.6])
    return shades[np.arange(count) % len(shades)]


def grouping_colours(responsibilities: Tensor) -> np.ndarray:
    """Colour each pixel by its components, mixed by responsibility: (K, H, W) -> (H, W, 3)."""
    gamma = responsibilities.detach().float().cpu().numpy()
    return np.einsum("khw,kc->hwc", gamma, colours(len(gamma))).clip(0, 1)


def groups_colours(groups: Tensor, labels: Tensor) -> np.ndarray:
    """Draw true groups, each in the colour of its component; pixels that are not scored are black.

    Groups and components are matched one to one, such that they share the most pixels.

    Args:
        groups: (H, W), objects from 1.
        labels: (H, W), the component of each pixel.

    Returns:
        (H, W, 3), red, green, blue in [0, 1].
    """
    true, found = groups.cpu().numpy(), labels.cpu().numpy()
    values = np.unique(true[true > 0])  # instance numbers, or class numbers with gaps
    count = max(found.max() + 1, len(values))
    shared = np.array([[np.sum((true == value) & (found == k)) for k in range(count)] for value in values])
    matched = linear_sum_assignment(shared.reshape(len(values), count), maximize=True)[1]
    picture = np.zeros((*true.shape, 3))
    for value, k in zip(values, matched, strict=True):
        picture[true == value] = colours(k + 1)[k]
    return picture


def film_colours(groups: Tensor, trajectory: Sequence[Grouping], index: int) -> list[np.ndarray]:
    """Colour the true groups of a sequence as :func:`groups_colours` does, each object in one colour at all steps.

    Args:
        groups: (B, F, H, W), objects from 1.
        trajectory: the groupings after steps 1 to T for the batch.
        index: which sequence of the batch.

    Returns:
        (H, W, 3) for each step: the groups of the frame that the step explains.
    """
    true = torch.cat([groups_of_step(groups, step)[index] for step in range(1, len(trajectory) + 1)])
    found = torch.cat([grouping.labels[index] for grouping in trajectory])
    return np.split(groups_colours(true, found), len(trajectory))


def image_pixels(image: Tensor) -> np.ndarray:
    """Convert (C, H, W) in [0, 1] to (H, W, 3): grey for one channel, else the first three channels."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    return pixels.permute(1, 2, 0).numpy()
