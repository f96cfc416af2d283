"""The scores of all rows as a page of tables."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from reproduce.rows import ABLATIONS
from reproduce.scoring import SCORES, SUBSETS

STAGES = {"test": "test", "val": "validation"}
SUBSET_TITLES = {"all": "all", "overlap": "overlapping", "no_overlap": "not overlapping"}
SCORE_TITLES = {
    "ami_max": "AMI (max)",
    "ami_arithmetic": "AMI (arithmetic)",
    "ari": "ARI",
    "reconstruction_error": "reconstruction error",
}
ABLATION_NAMES = {row.name for row in ABLATIONS}
Rows = dict[str, list[dict]]


def markdown(rows: Rows) -> str:
    """``table.md``."""
    intro = [
        "# Shapes",
        "",
        "Written by `python -m reproduce` from `rows/`. *Images*: the first so many of each split, of 10,000. "
        "Means over images, best checkpoint by validation reconstruction error, last EM step; ± is the sample "
        "standard deviation over seeds. Scores count pixels of exactly one object; *overlapping* are images in which "
        "objects overlap, *not overlapping* the others. The first responsibilities are drawn with `seed=0`, as "
        "`python evaluate.py` does.",
    ]
    sections = {
        "Test images": summary(rows),
        "The recipe with one thing changed": ablations(rows),
        "All scores": everything(rows),
        "How they were trained": training(rows),
    }
    tables = [["", f"## {title}", "", *table(lines)] for title, lines in sections.items() if lines[1:]]
    return "\n".join(intro + list(itertools.chain(*tables))) + "\n"


def summary(rows: Rows) -> list[tuple[str, ...]]:
    """Of each row but the ablations, the scores on the test images."""
    lines = [
        (
            "",
            "seeds",
            "images",
            "AMI (max)",
            "AMI (arithmetic)",
            "ARI",
            "reconstruction error",
            "AMI (max), overlapping",
            "AMI (max), not overlapping",
            "epochs",
            "stopped by",
        )
    ]
    for name, found in rows.items():
        if name in ABLATION_NAMES:
            continue
        cells = [text((score(row, "test", "all", name) for row in found), 4) for name in SCORES]
        parts = [text((score(row, "test", subset, "ami_max") for row in found), 4) for subset in SUBSETS[1:]]
        epochs = text((row.get("epochs") for row in found), 1)
        lines.append((found[0]["title"], str(len(found)), images(found), *cells, *parts, epochs, stops(found)))
    return lines


def ablations(rows: Rows) -> list[tuple[str, ...]]:
    """AMI (max) of the recipe, and of the recipe with one thing changed."""
    lines = [("", "seeds", *(f"AMI (max), {title}" for title in STAGES.values()), "images", "reconstruction error")]
    for name, found in rows.items():
        if name in {"recipe"} | ABLATION_NAMES:
            cells = [text((score(row, stage, "all", "ami_max") for row in found), 4) for stage in STAGES]
            error = text((score(row, "test", "all", "reconstruction_error") for row in found), 4)
            lines.append((found[0]["title"], str(len(found)), *cells, images(found), error))
    return lines


def images(rows: Sequence[Mapping]) -> str:
    """How many images of each split a row is scored on: the first so many."""
    return ", ".join(map(str, sorted({row["images"] for row in rows})))


def everything(rows: Rows) -> list[tuple[str, ...]]:
    """Of each row, all scores on all images."""
    lines = [("", "images", "", *SCORE_TITLES.values())]
    for found in rows.values():
        for stage, stage_title in STAGES.items():
            for subset in SUBSETS:
                cells = [text((score(row, stage, subset, name) for row in found), 4) for name in SCORES]
                lines.append((found[0]["title"], stage_title, SUBSET_TITLES[subset], *cells))
    return lines


def training(rows: Rows) -> list[tuple[str, ...]]:
    """Of each trained row, how."""
    lines = [("", "command", "hours a run", "trained on", "weights")]
    for found in rows.values():
        if "command" in found[0]:
            hours = [row["seconds"] / 3600 if row["seconds"] is not None else None for row in found]
            machines = {_machine(row["trained_on"]) for row in found}
            weights = {row["weights"] for row in found}
            said = (command(found), text(hours, 2), "; ".join(sorted(machines)), ", ".join(sorted(weights)))
            lines.append((found[0]["title"], *said))
    return lines


def _machine(machine: Mapping | None) -> str:
    if machine is None:
        return "not noted"
    return f"{machine['device']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first line is its head."""
    rule = ["---"] * len(lines[0])
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in (lines[0], rule, *lines[1:])]


def mean_and_deviation(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where there is no value, or for the deviation of one."""
    known = [value for value in values if value is not None]
    return (
        math.fsum(known) / len(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
    )


def text(values: Iterable[float | None], digits: int) -> str:
    """``mean ± deviation``."""
    mean, deviation = mean_and_deviation(values)
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def stops(rows: Sequence[Mapping]) -> str:
    """Why the runs of a row stopped, such as ``4 early stopping, 1 cut short after 30 of 500 epochs``."""
    if "epochs" not in rows[0]:
        return "-"
    said = Counter(
        f"**cut short** after {row['epochs']} of {row['planned_epochs']} epochs"
        if row["stop"] == "cut short"
        else row["stop"]
        for row in rows
    )
    return ", ".join(what if len(said) == 1 else f"{count} {what}" for what, count in said.items())


def command(rows: Sequence[Mapping]) -> str:
    """The command of a row, all seeds in one."""
    commands = {row["command"].replace(f"seed={row['seed']}", "seed=<seed>") for row in rows if "command" in row}
    return ", ".join(f"`{one}`" for one in sorted(commands)) or "-"


def score(row: Mapping, stage: str, subset: str, name: str) -> float | None:
    return row["scores"][stage][subset][name]
