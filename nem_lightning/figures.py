"""Groupings as pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nem_lightning.models.em import Iterate
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
"""One colour a component or object; then each darker, then lighter, and repeated beyond 24."""


def colours(count: int) -> np.ndarray:
    """(count, 3), red, green, blue in [0, 1]."""
    shades = np.concatenate([COLOURS, 0.5 * COLOURS, 0.4 * COLOURS + 0.6])
    return shades[np.arange(count) % len(shades)]


def grouping_colours(responsibilities: Tensor) -> np.ndarray:
    """Each pixel in the colours of its components, mixed by responsibility: (K, H, W) -> (H, W, 3)."""
    gamma = responsibilities.detach().float().cpu().numpy()
    return np.einsum("khw,kc->hwc", gamma, colours(len(gamma))).clip(0, 1)


def groups_colours(groups: Tensor, labels: Tensor) -> np.ndarray:
    """True groups, each in the colour of the component that covers it; 0 in black.

    Groups and components are matched one to one, for the most pixels in common.

    Args:
        groups: (H, W), 0 where not scored.
        labels: (H, W), the components that pixels belong to most.

    Returns:
        (H, W, 3), red, green, blue in [0, 1].
    """
    groups, labels = groups.cpu().numpy(), labels.cpu().numpy()
    values = np.unique(groups[groups != 0])  # instance numbers, or class numbers with gaps
    count = max(labels.max() + 1, len(values))
    shared = np.array([[np.sum((groups == value) & (labels == k)) for k in range(count)] for value in values])
    matched = linear_sum_assignment(shared.reshape(len(values), count), maximize=True)[1]
    picture = np.zeros((*groups.shape, 3))
    for value, k in zip(values, matched, strict=True):
        picture[groups == value] = colours(k + 1)[k]
    return picture


def image_pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3): grey for one channel, else the first three."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    return pixels.permute(1, 2, 0).numpy()


def groupings(
    image: Tensor, groups: Tensor, trajectory: Sequence[Iterate], index: int = 0, caption: str = ""
) -> Figure:
    """The grouping that EM finds in one image, step by step.

    Top row: the input, its true groups (black: not scored), then the responsibilities after each step,
    each component in a colour of its own; a true group has the colour of the component that covers it.
    Below: each component's mean after each step, framed in its colour.

    Args:
        image: (B, C, H, W), values in [0, 1].
        groups: (B, H, W), 0 where not scored.
        trajectory: the iterates after steps 1 to T for the batch.
        index: which image of the batch.
        caption: the figure's title.

    Returns:
        A matplotlib figure; save it with ``savefig``.
    """
    num_components = trajectory[0].mean.shape[1]
    columns, rows = len(trajectory) + 2, num_components + 1
    figure = Figure(figsize=(0.95 * columns + 0.3, 0.95 * rows + 0.55), layout="constrained", dpi=120)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=False)

    def show(row: int, column: int, picture: np.ndarray, title: str | None = None) -> None:
        axes[row, column].imshow(picture, vmin=0, vmax=1, interpolation="nearest")
        if title is not None:
            axes[row, column].set_title(title, fontsize=9)

    show(0, 0, image_pixels(image[index]), "input")
    show(0, 1, groups_colours(groups[index], trajectory[-1].labels[index]), "true groups")
    for step, iterate in enumerate(trajectory, start=1):
        show(0, step + 1, grouping_colours(iterate.responsibilities[index, :, 0]), f"step {step}")
        for k, colour in enumerate(colours(num_components)):
            show(k + 1, step + 1, image_pixels(iterate.mean[index, k]))
            axes[k + 1, step + 1].spines[:].set(visible=True, color=colour, linewidth=1.5)
    for k, colour in enumerate(colours(num_components)):
        axes[k + 1, 1].text(
            0.95,
            0.5,
            f"mean {k + 1}",
            color=colour,
            fontsize=9,
            ha="right",
            va="center",
            transform=axes[k + 1, 1].transAxes,
        )
    if caption:
        figure.suptitle(caption, fontsize=10)
    return figure


def gallery(image: Tensor, groups: Tensor, iterate: Iterate, count: int = 12, caption: str = "") -> Figure:
    """What EM finds in several images: for each, the input, its true groups and the grouping after one step.

    Args:
        image: (B, C, H, W), values in [0, 1].
        groups: (B, H, W), 0 where not scored.
        iterate: after the step, for the batch.
        count: how many images, the first of the batch.
        caption: the figure's title.
    """
    count = min(count, len(image))
    figure = Figure(figsize=(1.1 * count + 0.8, 3.9), layout="constrained", dpi=120)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(3, count, squeeze=False)
    for column in range(count):
        rows = (
            image_pixels(image[column]),
            groups_colours(groups[column], iterate.labels[column]),
            grouping_colours(iterate.responsibilities[column, :, 0]),
        )
        for ax, picture in zip(axes[:, column], rows, strict=True):
            ax.imshow(picture, vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=False)
    for ax, label in zip(axes[:, 0], ("input", "true groups", "found"), strict=True):
        ax.set_ylabel(label, fontsize=10)
    if caption:
        figure.suptitle(caption, fontsize=10)
    return figure


def save(module, batch: dict[str, Tensor], folder: Path, name: str) -> dict[str, Path]:
    """Draw what a module finds in the first images of a batch: ``groupings.png`` and ``gallery.png``.

    Args:
        module: a :class:`~nem_lightning.training.module.NeuralEMModule`.
        batch: ``image`` (B, C, H, W) and ``groups`` (B, H, W).
        folder: where the pictures go.
        name: of the images, for the titles.

    Returns:
        What each picture is, and its path.
    """
    image, groups = (batch[name][:12].to(module.device) for name in ("image", "groups"))
    image = image.to(next(module.parameters()).dtype)
    with torch.no_grad(), evaluating(module):
        trajectory = module(image, generator=module.generator("test", 0), num_starts=module.num_starts)
    drawn = {
        "groupings by step": ("groupings.png", groupings(image, groups, trajectory, caption=f"first of the {name}")),
        "gallery": ("gallery.png", gallery(image, groups, trajectory[-1], caption=f"{name}, step {len(trajectory)}")),
    }
    for file_name, figure in drawn.values():
        figure.savefig(folder / file_name)
    return {what: folder / file_name for what, (file_name, _) in drawn.items()}
