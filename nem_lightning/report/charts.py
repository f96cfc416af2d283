"""The charts of the page, and their colours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from nem_lightning.report.svg import Line, draw
from nem_lightning.report.sweep import Configuration, Setting, Sweep, best_first, shown

MOST_LINES = 12
MOST_SETTINGS = 4
STEPS = "model.num_steps"
CATEGORICAL = (  # on light, on dark; after Okabe and Ito, for colour-blind readers too
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8c42"),
    ("#009e73", "#34d1a3"),
    ("#b8578f", "#e5a0c8"),
    ("#b07c00", "#f5c242"),
    ("#5b4fc7", "#a9a1ff"),
    ("#5f6a72", "#c3ccd3"),
)


@dataclass(frozen=True)
class Chart:
    """An ``<svg>`` with its texts; ``legend`` is empty if the legend of the configurations applies."""

    title: str
    caption: str
    svg: str
    legend: Sequence[Line] = ()


@dataclass(frozen=True)
class Looks:
    """How configurations are drawn.

    Attributes:
        drawn: the configurations, in order.
        lines: the style of each configuration's lines, without points.
        colours: on light and on dark, by CSS variable.
        note: which configurations are not drawn, if any.
    """

    drawn: list[Configuration]
    lines: list[Line]
    colours: dict[str, tuple[str, str]]
    note: str

    @classmethod
    def of(cls, sweep: Sweep) -> "Looks":
        """Choose colours: ordered shades if one number differs, else a colour for each configuration."""
        drawn, note = _best(sweep.configurations, "configurations")
        ordered = len(sweep.settings) == 1 and sweep.settings[0].numeric and len(drawn) > 2
        pairs = _shades(len(drawn)) if ordered else CATEGORICAL
        lines = [
            Line(one.label, f"--c{i % len(pairs)}", dashed=i >= len(pairs), name=f"c{i}") for i, one in enumerate(drawn)
        ]
        named = {f"--c{i}": pair for i, pair in enumerate(pairs)} | {f"--g{i}": p for i, p in enumerate(CATEGORICAL)}
        return cls(drawn, lines, named, note)


def curves(looks: Looks) -> list[Chart]:
    """Draw validation scores and training loss by epoch; failed runs are left out."""
    what = (
        ("val/ami_max", "Validation AMI (max)", "AMI (max)"),
        ("val/reconstruction_error", "Validation reconstruction error", "mean squared error"),
        ("train/loss", "Training loss", "nats per image, mean of the epoch"),
    )
    charts = []
    for name, title, y_label in what:
        lines = [
            replace(look, seeds=[r.curves[name] for r in one.runs if name in r.curves and r.status != "failed"])
            for one, look in zip(looks.drawn, looks.lines, strict=True)
        ]
        if any(line.seeds for line in lines):
            svg = draw(name, lines, "epochs trained", y_label, log_y=name != "val/ami_max")
            charts.append(Chart(title, "", svg))
    return charts


def by_step(looks: Looks) -> list[Chart]:
    """Draw test AMI after each EM step."""
    lines = [
        replace(look, seeds=[_finite({t: s.get("ami_max") for t, s in enumerate(r.by_step, 1)}) for r in one.finished])
        for one, look in zip(looks.drawn, looks.lines, strict=True)
    ]
    if not any(seed for line in lines for seed in line.seeds):
        return []
    svg = draw("by_step", lines, "EM step", "AMI (max)")
    return [Chart("Test AMI (max) by EM step", "Within a run: after each of the steps it was trained with.", svg)]


def by_setting(sweep: Sweep) -> list[Chart]:
    """Draw test AMI after the last step against at most ``MOST_SETTINGS`` numbers that differ, T first."""
    numeric = sorted((one for one in sweep.settings if one.numeric), key=lambda one: one.key != STEPS)
    return [chart for one in numeric for chart in _by_setting(sweep, one)][:MOST_SETTINGS]


def _by_setting(sweep: Sweep, setting: Setting) -> list[Chart]:
    """Draw a line for each combination of other settings; for a search, in which many settings differ, draw dots."""
    others = [other for other in sweep.settings if other is not setting]
    finished = [one for one in sweep.configurations if one.finished]
    families: dict[tuple, list[Configuration]] = {}
    for one in finished:
        families.setdefault(tuple(one.values[other.key] for other in others), []).append(one)
    search = 2 * len(finished) < 3 * len(families)  # most combinations have one configuration
    if search:
        points = [_against(setting, [one], run.seed) for one in finished for run in one.finished]
        lines = [Line("", "--g0", seeds=points)]
        caption = "After the last EM step. A dot is a run; other settings differ between them as well."
    else:
        kept, note = _best([best_first(family)[0] for family in families.values()], "combinations of other settings")
        lines = []
        for values, family in families.items():
            if set(family).isdisjoint(kept):
                continue
            label = ", ".join(f"{o.name}={shown(o.key, value)}" for o, value in zip(others, values, strict=True))
            seeds = dict.fromkeys(run.seed for one in family for run in one.finished)
            points = [_against(setting, family, seed) for seed in seeds]
            i = len(lines) % len(CATEGORICAL)
            lines.append(Line(label, f"--g{i}", dashed=len(lines) > i, seeds=points))
        caption = f"After the last EM step. A dot is a seed. {note}"
    xs = {x for line in lines for seed in line.seeds for x in seed}
    if len(xs) < 2:
        return []
    log_x = min(xs) > 0 and max(xs) > 20 * min(xs)
    svg = draw(setting.key, lines, setting.key, "AMI (max)", log_x=log_x, dots=True, means=not search)
    step_sweep = setting.key == STEPS and not search
    title = "Step sweep: test AMI (max) by trained T" if step_sweep else f"Test AMI (max) by {setting.name}"
    return [Chart(title, caption, svg, lines if others and not search else ())]


def _against(setting: Setting, family: list[Configuration], seed: object) -> dict[float, float]:
    """Give the test AMI of a seed's runs by the setting's value."""
    return _finite(
        {one.values[setting.key]: r.score("ami_max") for one in family for r in one.finished if r.seed == seed}
    )


def _best(configurations: list[Configuration], what: str) -> tuple[list[Configuration], str]:
    """Give the best ``MOST_LINES`` in their order, and a note about the others."""
    if len(configurations) <= MOST_LINES:
        return configurations, ""
    best = best_first(configurations)[:MOST_LINES]
    kept = [one for one in configurations if one in best]
    return kept, f"The {MOST_LINES} of {len(configurations)} {what} with the highest mean test AMI (max) are drawn. "


def _finite(points: dict[float, float | None]) -> dict[float, float]:
    return {x: y for x, y in points.items() if y is not None and np.isfinite(y)}


def _shades(count: int) -> list[tuple[str, str]]:
    """Give colours from dark to bright, each visible on its background."""
    colours, shades = matplotlib.colormaps["viridis"], np.linspace(0, 1, count)
    return [(to_hex(colours(0.82 * s)), to_hex(colours(0.36 + 0.64 * s))) for s in shades]
