"""The figures of ``results/``, from the CSV files next to them. Bands are one sample standard deviation."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

Lines = Sequence[dict[str, Any]]


def em_steps(lines: Lines, score: str, title: str, kmeans: float) -> Figure:
    """Draw a score against T: of models tested at T, and of models trained at T. No k-means if ``kmeans`` is NaN."""
    figure, (axes,) = _figure(1)
    for (row, name), points in _by(lines, "row", "title").items():
        trained_at_t = row.endswith("_T")
        label = name if trained_at_t else f"{name} (T={points[0]['trained_steps']}), tested at T"
        _band(axes, points, "steps", score, "s--" if trained_at_t else "o-", label)
    _finish(axes, "EM steps T", title, kmeans)
    return figure


def other_k(lines: Lines, score: str, title: str, kmeans: float) -> Figure:
    """Draw a score against K on images of three objects, and against the number of objects."""
    figure, (components, objects) = _figure(2)
    for (name,), points in _by(lines, "title").items():
        of_three = [point for point in points if point["objects"] == 3]
        _band(components, of_three, "num_components", score, "o-", name)
        as_many = [point for point in points if point["num_components"] == point["objects"]]
        three = [point for point in points if point["num_components"] == 3]
        _band(objects, as_many, "objects", score, "o-", f"{name}, K = objects")
        _band(objects, three, "objects", score, "s--", f"{name}, K = 3")
    _finish(components, "components K, three objects", title, kmeans)
    _finish(objects, "objects in an image", title)
    return figure


def convergence(lines: Lines, score: str, title: str, kmeans: float) -> Figure:
    """Draw the log likelihood and Q by step, a column for each row and variant; other arguments are unused."""
    panels = _by(lines, "title", "variant")
    figure, all_axes = _figure(len(panels))
    for axes, ((name, variant), points) in zip(all_axes, panels.items(), strict=True):
        _band(axes, points, "step", "log_likelihood", "o-", "log likelihood")
        _band(axes, points, "step", "q", "s--", "Q, gamma of the step before")
        most = np.nanmax([point["fell_mean"] for point in points])
        axes.set_title(f"{name}\n{variant}; fell in at most {most:.1%} of the images", fontsize=9)
        _finish(axes, "EM step", "nats an image")
    return figure


def training(lines: Lines, score: str, title: str, kmeans: float) -> Figure:
    """Draw a score and the reconstruction error of the validation images by epoch."""
    figure, (above, below) = _figure(2)
    for (name,), points in _by(lines, "title").items():
        _band(above, points, "epoch", score, "-", name)
        _band(below, points, "epoch", "reconstruction_error", "-", name)
    below.set_yscale("log")
    _finish(above, "epoch", title, kmeans)
    _finish(below, "epoch", "reconstruction error")
    for axes in (above, below):
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axes.xaxis.minorticks_off()
    return figure


def growth(lines: Lines, titles: Mapping[str, str]) -> Figure:
    """Draw AMI above milliseconds an update, a column for each thing that grows; ``titles`` says what grows."""
    panels = _by(lines, "factor")
    figure = Figure(figsize=(3.5 * len(panels), 6.5), layout="constrained")
    rows = figure.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False)
    for above, below, ((factor,), points) in zip(*rows, panels.items(), strict=True):
        for axes, name in ((above, "ami_max"), (below, "milliseconds")):
            _band(axes, points, "value", name, "o-", None)
            axes.grid(alpha=0.3)
        below.set(xlabel=titles[factor], xscale="log", yscale="log")
        below.set_xticks([point["value"] for point in points])
        below.xaxis.set_major_formatter(EngFormatter(sep=""))
        below.xaxis.minorticks_off()
    rows[0, 0].set_ylabel("AMI (max)")
    rows[1, 0].set_ylabel("CPU milliseconds an update")
    ticks = [20, 50, 100, 200, 500, 1000]
    rows[1, 0].set_yticks(ticks, [str(tick) for tick in ticks])
    rows[1, 0].yaxis.set_minor_formatter("")
    return figure


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.5, 3.9 * columns), 4.8), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _by(lines: Lines, *keys: str) -> dict[tuple, list[dict[str, Any]]]:
    found = defaultdict(list)
    for line in lines:
        found[tuple(line[key] for key in keys)].append(line)
    return found


def _band(axes: Axes, points: Lines, x: str, score: str, style: str, label: str | None) -> None:
    """Draw a line through the means, and a band around it."""
    points = sorted(points, key=lambda point: point[x])
    at, means = [point[x] for point in points], np.array([point[f"{score}_mean"] for point in points])
    deviations = np.nan_to_num([point[f"{score}_std"] for point in points])
    (line,) = axes.plot(at, means, style, markersize=4, label=label)
    axes.fill_between(at, means - deviations, means + deviations, color=line.get_color(), alpha=0.2, linewidth=0)


def _finish(axes: Axes, x: str, y: str, kmeans: float = np.nan) -> None:
    if kmeans == kmeans:
        axes.axhline(kmeans, color="black", linestyle=":", label="k-means on (x, y)")
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13))  # below the axes, so that it hides no line
