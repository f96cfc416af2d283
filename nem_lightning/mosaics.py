"""Small pictures in rows and columns, as one picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

CELL, GAP, FRAME, TEXT, LABELS, DPI = 112, 8, 2, 20, 104, 120
"""Pixels of about one small picture, between two, of a frame, of a line of text, of labels of rows; and of an
inch."""


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
