"""The figures of ``results/``, from the lines of the CSV files beside them. Bands are one sample standard deviation."""

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Lines = Sequence[dict]


def em_steps(lines: Lines, kmeans: float | None) -> Figure:
    """AMI (max) against T: of models evaluated at T, and of models trained at T."""
    figure, (axes,) = _figure(1)
    for title, points in _by(lines, "title").items():
        at_t = points[0]["row"] == "recipe_T"
        label = title if at_t else f"{title} (T={points[0]['trained_steps']}), evaluated at T"
        _band(axes, points, "steps", "ami_max", "s--" if at_t else "o-", label)
    _finish(axes, "EM steps T", "AMI (max)", kmeans)
    return figure


def other_k(lines: Lines, kmeans: float | None) -> Figure:
    """AMI (max) against K on images of three objects, and against the number of objects."""
    figure, (components, objects) = _figure(2)
    for title, points in _by(lines, "title").items():
        of_three = [point for point in points if point["objects"] == 3]
        _band(components, of_three, "num_components", "ami_max", "o-", title)
        as_many = [point for point in points if point["num_components"] == point["objects"]]
        three = [point for point in points if point["num_components"] == 3]
        _band(objects, as_many, "objects", "ami_max", "o-", f"{title}, K = objects")
        _band(objects, three, "objects", "ami_max", "s--", f"{title}, K = 3")
    _finish(components, "components K, three objects", "AMI (max)", kmeans)
    _finish(objects, "objects in an image", "AMI (max)", None)
    return figure


def convergence(lines: Lines, kmeans: float | None) -> Figure:
    """The log likelihood and Q by step, a column for each row and variant. ``kmeans`` is not drawn."""
    panels = _by(lines, "title", "variant")
    figure, all_axes = _figure(len(panels))
    for axes, ((title, variant), points) in zip(all_axes, panels.items(), strict=True):
        _band(axes, points, "step", "log_likelihood", "o-", "log likelihood")
        _band(axes, points, "step", "q", "s--", "Q, gamma of the step before")
        most = max(point["fell"] or 0 for point in points)
        axes.set_title(f"{title}\n{variant}; fell in at most {most:.1%} of the images", fontsize=9)
        _finish(axes, "EM step", "nats an image", None)
    return figure


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.5, 3.9 * columns), 4.8), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _by(lines: Lines, *keys: str) -> dict:
    found = defaultdict(list)
    for line in lines:
        found[line[keys[0]] if len(keys) == 1 else tuple(line[key] for key in keys)].append(line)
    return found


def _band(axes: Axes, points: Lines, x: str, score: str, style: str, label: str) -> None:
    """A line through the means, and a band around it."""
    known = [point for point in points if point[f"{score}_mean"] is not None]
    at = [point[x] for point in known]
    means = [point[f"{score}_mean"] for point in known]
    spread = [point[f"{score}_std"] or 0 for point in known]
    (line,) = axes.plot(at, means, style, markersize=4, label=label)
    low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _finish(axes: Axes, x: str, y: str, kmeans: float | None) -> None:
    if kmeans is not None:
        axes.axhline(kmeans, color="black", linestyle=":", label="k-means on (x, y)")
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13))  # below, where no line is
