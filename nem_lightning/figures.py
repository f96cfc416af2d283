"""Groupings as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
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

CELL, GAP, FRAME, TEXT, LABELS, DPI = 112, 8, 2, 20, 104, 120
"""Pixels of about one small picture, between two, of a frame, of a line of text, of labels of rows; and of an
inch."""

SECONDS_A_STEP = 0.4
"""Of animations."""


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


class Mosaic:
    """Small pictures in rows and columns, with texts beside them, drawn as one picture: quicker than axes for each.

    A pixel of a small picture becomes a square of whole pixels.

    Args:
        rows: how many.
        columns: how many.
        shape: height and width of the small pictures.
        label_width: pixels left of the first column, for labels of rows.
        caption: above all.
    """

    def __init__(self, rows: int, columns: int, shape: Sequence[int], label_width: int = 0, caption: str = "") -> None:
        self.height, self.width = shape
        self.scale = max(1, round(CELL / max(shape)))
        self.left, self.top = label_width + GAP, TEXT + GAP + (TEXT if caption else 0)
        down, across = self.corner(rows, columns)
        self.pixels = np.ones((down, across, 3))
        self.texts: list[tuple[float, float, str, dict[str, Any]]] = []
        if caption:
            self._write(across / 2, TEXT / 2 + GAP, caption, fontsize=10, ha="center")

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Give the upper left corner of a small picture, in pixels from the top and from the left."""
        down, across = self.height * self.scale + GAP, self.width * self.scale + GAP
        return self.top + row * down, self.left + column * across

    def show(self, row: int, column: int, picture: np.ndarray, frame: np.ndarray | None = None) -> None:
        """Put a small picture (H, W, 3) in its place, in a frame of a colour."""
        down, across = self.corner(row, column)
        height, width = self.height * self.scale, self.width * self.scale
        if frame is not None:
            self.pixels[down - FRAME : down + height + FRAME, across - FRAME : across + width + FRAME] = frame
        large = picture.repeat(self.scale, 0).repeat(self.scale, 1)
        self.pixels[down : down + height, across : across + width] = large

    def title(self, row: int, column: int, text: str) -> None:
        """Write above a small picture."""
        down, across = self.corner(row, column)
        self._write(across + self.width * self.scale / 2, down - TEXT / 2, text, fontsize=9, ha="center")

    def label(self, row: int, column: int, text: str, colour: object = "black") -> None:
        """Write left of a small picture."""
        down, across = self.corner(row, column)
        self._write(across - 2 * GAP, down + self.height * self.scale / 2, text, fontsize=9, ha="right", color=colour)

    def figure(self) -> Figure:
        """Give the whole as a figure of exactly these pixels."""
        down, across = self.pixels.shape[:2]
        figure = Figure(figsize=(across / DPI, down / DPI), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(self.pixels, interpolation="none", aspect="auto", extent=(0, across, down, 0))
        for x, y, text, style in self.texts:
            axes.text(x, y, text, va="center", **style)
        return figure

    def _write(self, x: float, y: float, text: str, **style: Any) -> None:
        self.texts.append((x, y, text, style))


def groupings(
    frames: Tensor, groups: Tensor, trajectory: Sequence[Grouping], index: int = 0, caption: str = ""
) -> Figure:
    """Draw the grouping that a model finds in one image or sequence, step by step.

    A column for each step shows the responsibilities, each component in a colour of its own, and below them each
    component's mean, framed in its colour. A true group has the colour of the component that covers it, and is black
    if it is not scored. For a still image, two columns before the steps show the input and its true groups; for a
    sequence, two rows above the responsibilities show the frame that the step explains and its true groups.

    Args:
        frames: (B, F, C, H, W), values in [0, 1].
        groups: (B, F, H, W), objects from 1.
        trajectory: the groupings after steps 1 to T for the batch.
        index: which image of the batch.
        caption: the figure's title.
    """
    is_still = frames.shape[1] == 1
    first_column, found_row = (2, 0) if is_still else (0, 2)
    num_means = trajectory[0].responsibilities.shape[1] if trajectory[0].mean is not None else 0
    rows, columns = found_row + 1 + num_means, first_column + len(trajectory)
    mosaic = Mosaic(rows, columns, frames.shape[-2:], 0 if is_still else LABELS, caption)
    if is_still:
        mosaic.show(0, 0, image_pixels(frames[index, 0]))
        mosaic.show(0, 1, groups_colours(groups[index, 0], trajectory[-1].labels[index]))
        mosaic.title(0, 0, "input")
        mosaic.title(0, 1, "true groups")
    else:
        for row, text in enumerate(("frame", "true groups", "found")):
            mosaic.label(row, 0, text)
    film = [] if is_still else film_colours(groups, trajectory, index)
    of_means = colours(num_means)
    for step, grouping in enumerate(trajectory, start=1):
        column = first_column + step - 1
        mosaic.title(0, column, f"step {step}")
        if not is_still:
            mosaic.show(0, column, image_pixels(frame_pair(frames, step)[1][index]))
            mosaic.show(1, column, film[step - 1])
        mosaic.show(found_row, column, grouping_colours(grouping.responsibilities[index, :, 0]))
        for k, colour in enumerate(of_means):
            assert grouping.mean is not None
            mosaic.show(found_row + 1 + k, column, image_pixels(grouping.mean[index, k]), colour)
    for k, colour in enumerate(of_means):
        mosaic.label(found_row + 1 + k, first_column, f"mean {k + 1}", colour)
    return mosaic.figure()


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
    mosaic = Mosaic(3, count, image.shape[-2:], LABELS, caption)
    for row, text in enumerate(("input", "true groups", "found")):
        mosaic.label(row, 0, text)
    for column in range(count):
        mosaic.show(0, column, image_pixels(image[column]))
        mosaic.show(1, column, groups_colours(groups[column], grouping.labels[column]))
        mosaic.show(2, column, grouping_colours(grouping.responsibilities[column, :, 0]))
    return mosaic.figure()


def animation(
    frames: Tensor, groups: Tensor, trajectory: Sequence[Grouping], count: int = 4, caption: str = ""
) -> list[Image.Image]:
    """Draw what a model finds in several sequences, a picture for each step.

    A row for each sequence shows the frame that the step explains, its true groups, the grouping, and each component's
    mean, which is its prediction of the frame.

    Args:
        frames: (B, F, C, H, W), values in [0, 1].
        groups: (B, F, H, W), objects from 1.
        trajectory: the groupings after steps 1 to T for the batch.
        count: how many sequences, the first of the batch.
        caption: the pictures' title, before the step.
    """
    count = min(count, len(frames))
    num_means = trajectory[0].responsibilities.shape[1] if trajectory[0].mean is not None else 0
    pictures, films = [], [film_colours(groups, trajectory, row) for row in range(count)]
    for step, grouping in enumerate(trajectory, start=1):
        mosaic = Mosaic(count, 3 + num_means, frames.shape[-2:], caption=f"{caption} step {step}".lstrip())
        for column, text in enumerate(["frame", "true groups", "found", *(f"mean {k + 1}" for k in range(num_means))]):
            mosaic.title(0, column, text)
        image = frame_pair(frames, step)[1]
        for row in range(count):
            mosaic.show(row, 0, image_pixels(image[row]))
            mosaic.show(row, 1, films[row][step - 1])
            mosaic.show(row, 2, grouping_colours(grouping.responsibilities[row, :, 0]))
            for k, colour in enumerate(colours(num_means)):
                assert grouping.mean is not None
                mosaic.show(row, 3 + k, image_pixels(grouping.mean[row, k]), colour)
        canvas = FigureCanvasAgg(mosaic.figure())
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return pictures


def save_animation(pictures: Sequence[Image.Image], file: Path | BinaryIO) -> None:
    """Write pictures to a GIF that repeats for ever."""
    first, *others = (picture.quantize(64) for picture in pictures)
    first.save(file, "GIF", save_all=True, append_images=others, duration=SECONDS_A_STEP * 1000, loop=0)


class Pictures(NamedTuple):
    """Paths of the pictures of a model's groupings."""

    groupings: Path
    """One image, step by step."""
    gallery: Path
    """Several images after the last step."""
    animation: Path | None
    """Several sequences, step by step; None for still images."""


def save(model: GroupingModel, batch: Batch, generator: torch.Generator, folder: Path, name: str) -> Pictures:
    """Draw what a model finds in the first images of a batch: ``groupings.png`` and ``gallery.png``.

    For sequences, draw ``animation.gif`` too.

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
    moving = folder / "animation.gif" if frames.shape[1] > 1 else None
    pictures = Pictures(folder / "groupings.png", folder / "gallery.png", moving)
    groupings(frames, groups, trajectory, caption=f"first of the {name}").savefig(pictures.groupings)
    gallery(image, of_image, trajectory[-1], caption=f"{name}, step {steps}").savefig(pictures.gallery)
    if moving is not None:
        save_animation(animation(frames, groups, trajectory, caption=f"{name},"), moving)
    return pictures
