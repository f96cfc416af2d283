"""Groupings as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from nem_lightning.colours import colours, film_colours, grouping_colours, groups_colours, image_pixels
from nem_lightning.datamodules.base import Batch, frames_of, groups_of
from nem_lightning.models.grouping import Grouping, GroupingModel, frame_pair, groups_of_step
from nem_lightning.models.m_steps import evaluating
from nem_lightning.mosaics import LABELS, Mosaic

SECONDS_A_STEP = 0.4
"""Of animations."""


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
