"""Groupings as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nem_lightning.datamodules.base import Batch, frames_of, groups_of
from nem_lightning.models.grouping import Grouping, GroupingModel, frame_pair, groups_of_step
from nem_lightning.models.m_steps import evaluating

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


def image_pixels(image: Tensor) -> np.ndarray:
    """Convert (C, H, W) in [0, 1] to (H, W, 3): grey for one channel, else the first three channels."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    return pixels.permute(1, 2, 0).numpy()


def groupings(
    frames: Tensor, groups: Tensor, trajectory: Sequence[Grouping], index: int = 0, caption: str = ""
) -> Figure:
    """Draw the grouping that a model finds in one image or sequence, step by step.

    A column for each step shows the responsibilities, each component in its own colour, and below them each
    component's mean, framed in its colour. A true group has the colour of its component, and is black if it is not
    scored. For a still image, two columns before the steps show the input and its true groups; for a
    sequence, two rows above the responsibilities show the frame that the step explains and its true groups.

    Args:
        frames: (B, F, C, H, W), values in [0, 1].
        groups: (B, F, H, W), objects from 1.
        trajectory: the groupings after steps 1 to T for the batch.
        index: which image of the batch.
        caption: the figure's title.
    """
    num_components = trajectory[0].responsibilities.shape[1]
    is_still = frames.shape[1] == 1
    first_column, found_row = (2, 0) if is_still else (1, 2)
    num_means = num_components if trajectory[0].mean is not None else 0
    rows, columns = found_row + 1 + num_means, first_column + len(trajectory)
    figure = _figure(1.05 * columns, 1.05 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=False)

    def show(row: int, column: int, picture: np.ndarray, title: str | None = None) -> None:
        axes[row, column].imshow(picture, vmin=0, vmax=1, interpolation="nearest")
        if title is not None:
            axes[row, column].set_title(title, fontsize=9)

    def label(row: int, text: str, colour: object = "black") -> None:
        ax = axes[row, first_column - 1]
        ax.text(0.95, 0.5, text, color=colour, fontsize=9, ha="right", va="center", transform=ax.transAxes)

    if is_still:
        show(0, 0, image_pixels(frames[index, 0]), "input")
        show(0, 1, groups_colours(groups[index, 0], trajectory[-1].labels[index]), "true groups")
    else:
        for row, text in enumerate(("frame", "true groups", "found")):
            label(row, text)
    for step, grouping in enumerate(trajectory, start=1):
        column = first_column + step - 1
        if not is_still:
            show(0, column, image_pixels(frame_pair(frames, step)[1][index]), f"step {step}")
            show(1, column, groups_colours(groups_of_step(groups, step)[index], grouping.labels[index]))
        found = grouping_colours(grouping.responsibilities[index, :, 0])
        show(found_row, column, found, f"step {step}" if is_still else None)
        for k, colour in enumerate(colours(num_means), start=1):
            assert grouping.mean is not None
            show(found_row + k, column, image_pixels(grouping.mean[index, k - 1]))
            axes[found_row + k, column].spines[:].set(visible=True, color=colour, linewidth=1.5)
    for k, colour in enumerate(colours(num_means), start=1):
        label(found_row + k, f"mean {k}", colour)
    if caption:
        figure.suptitle(caption, fontsize=10)
    return figure


def gallery(image: Tensor, groups: Tensor, grouping: Grouping, count: int = 12, caption: str = "") -> Figure:
    """Draw what a model finds in several images: for each, the input, its true groups and the grouping after one step.

    Args:
        image: (B, C, H, W), values in [0, 1]; of a sequence, the frame that the step explains.
        groups: (B, H, W), objects from 1.
        grouping: after the step, for the batch.
        count: how many images, the first of the batch.
        caption: the figure's title.
    """
    count = min(count, len(image))
    figure = _figure(1.1 * count + 0.8, 3.9)
    axes = figure.subplots(3, count, squeeze=False)
    for column in range(count):
        rows = (
            image_pixels(image[column]),
            groups_colours(groups[column], grouping.labels[column]),
            grouping_colours(grouping.responsibilities[column, :, 0]),
        )
        for ax, picture in zip(axes[:, column], rows, strict=True):
            ax.imshow(picture, vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=False)
    for ax, text in zip(axes[:, 0], ("input", "true groups", "found"), strict=True):
        ax.set_ylabel(text, fontsize=10)
    if caption:
        figure.suptitle(caption, fontsize=10)
    return figure


def _figure(width: float, height: float) -> Figure:
    """Make a figure for pictures that are close together; sizes in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return Figure(figsize=(width, height), layout=layout, dpi=120)


class Pictures(NamedTuple):
    """Paths of the pictures of a model's groupings."""

    groupings: Path
    """One image, step by step."""
    gallery: Path
    """Several images after the last step."""


def save(model: GroupingModel, batch: Batch, generator: torch.Generator, folder: Path, name: str) -> Pictures:
    """Draw what a model finds in the first images of a batch: ``groupings.png`` and ``gallery.png``.

    Args:
        model: the model.
        batch: ``frames`` (B, F, C, H, W) and, if they are known, ``groups`` (B, F, H, W).
        generator: draws the model's random numbers, on the model's device.
        folder: where the pictures go.
        name: of the images, for the titles.
    """
    frames, groups = (part[:12].to(generator.device) for part in (frames_of(batch), groups_of(batch)))
    weight = next(model.parameters(), None)
    frames = frames if weight is None else frames.to(weight.dtype)
    with torch.no_grad(), evaluating(model):
        trajectory = model(frames, generator=generator)
    steps = len(trajectory)
    image, of_image = frame_pair(frames, steps)[1], groups_of_step(groups, steps)
    pictures = Pictures(folder / "groupings.png", folder / "gallery.png")
    groupings(frames, groups, trajectory, caption=f"first of the {name}").savefig(pictures.groupings)
    gallery(image, of_image, trajectory[-1], caption=f"{name}, step {steps}").savefig(pictures.gallery)
    return pictures
