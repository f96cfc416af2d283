"""Lines with bands, as SVG for a page.

Colours are the page's CSS variables, so that one drawing is readable on light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

# Placeholder colours, replaced by CSS variables when the SVG is written.
_MUTED, _GRID, _LINE = "#010000", "#010001", "#0101{:02x}"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Line:
    """The mean of several seeds, with a band from the lowest to the highest.

    Attributes:
        label: its text in legends.
        colour: a CSS variable, such as ``--c0``.
        dashed: if there are more lines than colours.
        seeds: y by x for each seed.
        name: the CSS class of the drawn elements.
    """

    label: str
    colour: str
    dashed: bool = False
    seeds: Sequence[Mapping[float, float]] = ()
    name: str = ""


def draw(
    name: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    dots: bool = False,
    means: bool = True,
) -> str:
    """Draw lines as an ``<svg>`` element.

    Args:
        name: makes this drawing's ids unique in the page.
        lines: lines without points are left out.
        x_label: of the axis, with its unit.
        y_label: of the axis, with its unit.
        log_x: logarithmic axis.
        log_y: logarithmic axis, if all values are positive and span a factor of more than 5.
        dots: whether to draw a dot for each value.
        means: whether to draw the lines and their bands.
    """
    values = [y for line in lines for seed in line.seeds for y in seed.values()]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(5, 3.3), layout="constrained")
        figure.patch.set_visible(False)
        ax = figure.subplots()
        ax.patch.set_visible(False)
        ax.tick_params(length=0)
        ax.set_xlabel(x_label, parse_math=False)
        ax.set_ylabel(y_label, parse_math=False)
        for index, line in enumerate(lines):
            if any(line.seeds):
                drawn = _draw_means(ax, line, _LINE.format(index)) if means else []
                drawn += _draw_dots(ax, line, _LINE.format(index), 3.5 if means else 6) if dots else []
                for artist in drawn:
                    artist.set_gid(f"line {line.name}")
        if log_x:
            ax.set_xscale("log")
        if log_y and min(values) > 0 and max(values) > 5 * min(values):
            ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):
            _ticks(axis)
        xs = np.array(sorted({x for line in lines for seed in line.seeds for x in seed}), dtype=float)
        places = np.log(xs) if log_x else xs
        if len(xs) <= 8 and np.diff(places).min(initial=np.inf) > 0.07 * np.ptp(places):
            ax.set_xticks(xs)  # a tick at each value, if there is room
        elif not log_x:
            ax.xaxis.set_major_locator(MaxNLocator(integer=bool((xs == xs.round()).all()), nbins=8))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    variables = {_MUTED: "--muted", _GRID: "--grid"} | {_LINE.format(i): one.colour for i, one in enumerate(lines)}
    return _for_a_page(file.getvalue(), variables)


def _draw_means(ax: Axes, line: Line, colour: str) -> list[Artist]:
    xs = sorted(set().union(*line.seeds))
    by_x = [np.array([seed[x] for seed in line.seeds if x in seed]) for x in xs]
    drawn: list[Artist] = []
    drawn += ax.plot(
        xs,
        [ys.mean() for ys in by_x],
        color=colour,
        linestyle=(0, (4, 1.6)) if line.dashed else "-",
        marker="o" if len(xs) <= 20 else "",
        markeredgewidth=0,
    )
    if len(line.seeds) > 1:
        low, high = [ys.min() for ys in by_x], [ys.max() for ys in by_x]
        drawn.append(ax.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0))
    return drawn


def _draw_dots(ax: Axes, line: Line, colour: str, size: float) -> list[Artist]:
    style = {"color": colour, "alpha": 0.5, "markersize": size, "markeredgewidth": 0}
    return [dot for seed in line.seeds for dot in ax.plot(list(seed), list(seed.values()), "o", **style)]


def _ticks(axis: Axis) -> None:
    """Show plain numbers, also on a logarithmic axis."""
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_major_formatter(ScalarFormatter(useOffset=False))


def _for_a_page(svg: str, variables: dict[str, str]) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns|xmlns:xlink|version)="[^"]*"', "", svg, count=3)  # HTML needs no XML namespaces
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace('id="line ', 'class="line ')
    svg = re.sub(r'\sid="[A-Za-z0-9.]+_\d+"', "", svg)  # unused, and the same in every drawing
    return re.sub(r"#01[0-9a-f]{4}", lambda match: f"var({variables[match[0]]})", svg)
