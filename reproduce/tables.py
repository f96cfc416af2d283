"""Tables and figures, from the scores in ``results/rows/`` alone."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nem_lightning.errors import require
from nem_lightning.files import atomic_file
from nem_lightning.headings import Heading
from nem_lightning.report.sweep import Spread
from nem_lightning.runs.settings import differences
from reproduce import plots
from reproduce.evaluation import VALIDATED
from reproduce.rows import GROUPS, ROWS, read

Rows = dict[str, list[dict[str, Any]]]
"""By the row's name, the scores of each seed."""
Line = dict[str, Any]
WITH_CURVES = (*GROUPS["trained"], *GROUPS["published"])
"""The rows whose validation scores are drawn by epoch."""
SPLITS = {"test": "test", "val": "validation"}
SUBSETS = {"all": "all", "overlap": "overlapping", "no_overlap": "not overlapping"}
INTRO = """# Shapes

Written by `python -m reproduce tables` from `rows/`. *Images*: the first so many of each split, of 10,000. Means over \
images, best checkpoint by validation reconstruction error, last EM step; ± is the sample standard deviation over \
seeds. Scores count pixels of exactly one object; *overlapping* are images in which objects overlap, *not overlapping* \
the others. Random numbers are drawn with `seed=0`, as `python evaluate.py` does.
"""


def read_rows(results: Path) -> Rows:
    """Read the scores of each row, in the order of the table.

    Raises:
        InputError: there are no scores, one cannot be read, or the seeds of a row were trained with different settings.
    """
    found = by_row(results / "rows", read)
    require(bool(found), f"{results / 'rows'}: no scores in it; python -m reproduce score writes them")
    for name, (first, *rest) in found.items():
        for other in rest:
            apart = differences(first.get("settings", {}), other.get("settings", {}))
            require(
                not apart,
                f"{results / 'rows'}: {name}: seeds {first['seed']} and {other['seed']} were trained with different "
                f"settings ({', '.join(each.name for each in apart[:3])}); delete the older and train it again",
            )
    return {name: found[name] for name in (*ROWS, *sorted(found.keys() - ROWS.keys())) if name in found}


def by_row(folder: Path, read: Callable[[Path], dict[str, Any]] = lambda path: json.loads(path.read_text())) -> Rows:
    """Read the scores in a folder, the seeds of each row in their order."""
    found: Rows = defaultdict(list)
    for scores in sorted(map(read, sorted(folder.glob("*.json"))), key=lambda scores: scores["seed"]):
        found[scores["row"]].append(scores)
    return found


def headings(rows: Rows) -> dict[str, Heading]:
    """Give the headings of all scores, by name; the main score first."""
    return {name: Heading(*of) for found in rows.values() for row in found for name, of in row["headings"].items()}


def write(results: Path) -> dict[str, Path]:
    """Write all tables and figures for which there are scores.

    Returns:
        The path of each file, by what it is.
    """
    rows = read_rows(results)
    scores = headings(rows)
    headline = next(iter(scores))
    places = {"table": results / "table.md", "table as CSV": results / "table.csv"}
    table = table_lines(rows)
    with atomic_file(places["table"]) as file:
        file.write_text(markdown(rows, table))
    _write_csv(places["table as CSV"], table)
    by_k = lines_of(rows, lambda row: row.get("other_k", []), ("objects", "num_components"), scores)
    followed = ("log_likelihood", "q", "fell")
    climbs = lines_of(rows, lambda row: row.get("convergence", []), ("variant", "step"), followed)
    # two epochs, as many as the default settings have, make no curve
    long = {row.name: rows[row.name] for row in WITH_CURVES if row.name in rows and rows[row.name][0]["epochs"] > 2}
    epochs = lines_of(
        long, lambda row: [{"images": row["images"], **line} for line in row.get("by_epoch", [])], ("epoch",), VALIDATED
    )
    parts: dict[str, tuple[list[Line], Callable[..., Figure]]] = {
        "em_steps": (em_steps(rows), plots.em_steps),
        "other_k": (by_k, plots.other_k),
        "convergence": (climbs, plots.convergence),
        "training": (epochs, plots.training),
    }
    kmeans = spread(row["scores"]["test"]["all"][headline] for row in rows.get("kmeans", [])).mean
    for name, (lines, draw) in parts.items():
        if lines:
            places |= write_figure(results, name, lines, draw(lines, headline, scores[headline].title, kmeans))
    return places


def write_figure(results: Path, name: str, lines: Sequence[Line], figure: Figure) -> dict[str, Path]:
    """Write a figure and, beside it, the lines that it shows as CSV; give their paths."""
    places = {f"{name}.{suffix}": results / f"{name}.{suffix}" for suffix in ("csv", "png")}
    _write_csv(places[f"{name}.csv"], lines)
    with atomic_file(places[f"{name}.png"]) as file:
        figure.savefig(file, format="png", dpi=130)
    return places


def spread(values: Iterable[float | None]) -> Spread:
    """Give mean and sample standard deviation of the values that are not None."""
    return Spread.of([value for value in values if value is not None])


def lines_of(
    rows: Rows, entries: Callable[[dict[str, Any]], list[Line]], keys: Sequence[str], names: Collection[str]
) -> list[Line]:
    """Give a line for each row and each value of ``keys``: mean and deviation over seeds of each of ``names``.

    Args:
        rows: the scores.
        entries: gives the measurements of one seed: an entry with ``images`` for each value of ``keys``.
        keys: names that tell the entries of a seed apart, such as ``steps``.
        names: of the numbers.
    """
    lines = []
    for row, found in rows.items():
        cases = defaultdict(list)
        for entry in (entry for seed in found for entry in entries(seed)):
            cases[tuple(entry[key] for key in keys)].append(entry)
        for case, of_seeds in cases.items():
            head = {"row": row, "title": found[0]["title"], **dict(zip(keys, case, strict=True))}
            images = ", ".join(map(str, sorted({entry["images"] for entry in of_seeds})))
            lines.append({**head, "images": images, "seeds": len(of_seeds)})
            for name in names:
                over_seeds = spread(entry.get(name) for entry in of_seeds)
                lines[-1] |= {f"{name}_mean": over_seeds.mean, f"{name}_std": over_seeds.deviation}
    return lines


def table_lines(rows: Rows) -> list[Line]:
    """Give ``table.csv``: a line for each row, split and subset."""

    def entries(row: dict[str, Any]) -> list[Line]:
        how = {name: row.get(name) for name in ("epochs", "seconds")}
        return [
            {"split": SPLITS[stage], "subset": subset, **row["scores"][stage][subset], **how}
            for stage in SPLITS
            for subset in SUBSETS
        ]

    lines = lines_of(rows, entries, ("split", "subset"), (*headings(rows), "epochs", "seconds"))
    for line in lines:
        found = rows[line["row"]]
        line |= {"planned_epochs": found[0].get("planned_epochs", ""), "stop": stops(found), "command": command(found)}
    return lines


def em_steps(rows: Rows) -> list[Line]:
    """Give a line for each row and T: trained once and tested at several T, or trained at that T."""
    tested = lines_of(
        rows,
        lambda row: [{"trained_steps": row["num_steps"], **entry} for entry in row.get("by_step", [])],
        ("trained_steps", "steps"),
        headings(rows),
    )
    at_t = {}
    for prefix, title, at_ten in (
        ("steps_T", "RNN-EM, trained at T", rows.get("rnn_em", [])),
        ("published_T", "RNN-EM, as published, 20 epochs, trained at T", []),
    ):
        others = [row for name, found in rows.items() if name.startswith(prefix) for row in found]
        chosen = [{**row, "title": title} for row in (*others, *at_ten) if others]
        at_t[prefix] = sorted(chosen, key=lambda row: row["num_steps"])
    trained = lines_of(
        at_t,
        lambda row: [dict.fromkeys(("trained_steps", "steps"), row["num_steps"]) | row["scores"]["test"]["all"]],
        ("trained_steps", "steps"),
        headings(rows),
    )
    return tested + trained


def stops(found: Sequence[Mapping[str, Any]]) -> str:
    """Say why the runs of a row stopped, such as ``4 early stopping, 1 cut short after 30 of 500 epochs``."""
    said = Counter(
        f"cut short after {row['epochs']} of {row['planned_epochs']} epochs"
        if row["stop"] == "cut short"
        else row["stop"]
        for row in found
        if "stop" in row
    )
    return ", ".join(what if len(said) == 1 else f"{count} {what}" for what, count in said.items()) or "-"


def command(found: Sequence[Mapping[str, Any]]) -> str:
    """Give the command of a row, all seeds in one."""
    commands = {row["command"].replace(f"seed={row['seed']}", "seed=<seed>") for row in found if "command" in row}
    return ", ".join(sorted(commands)) or "-"


def markdown(rows: Rows, table: Sequence[Line]) -> str:
    """Give ``table.md``."""
    scores = headings(rows)
    headline = next(iter(scores))
    lines = {(line["row"], line["split"], line["subset"]): line for line in table}

    def cell(row: str, name: str, split: str = "test", subset: str = "all") -> str:
        return text(lines[row, split, subset], name, scores[name].format)

    titles, first = [heading.title for heading in scores.values()], scores[headline].title
    parts = [f"{first}, {SUBSETS[subset]}" for subset in ("overlap", "no_overlap")]
    summary = [["", "seeds", "images", *titles, *parts, "epochs", "stopped by"]]
    changed = [["", "seeds", *(f"{first}, {split}" for split in SPLITS.values()), "images", *titles[1:]]]
    everything = [["", "images", "", *titles]]
    training = [["", "command", "hours a run", "machine", "weights"]]
    for row, found in rows.items():
        line = lines[row, "test", "all"]
        title, seeds, images = line["title"], str(line["seeds"]), line["images"]
        if row.startswith("ablation_") or row == "rnn_em":
            both = [cell(row, headline, split) for split in SPLITS.values()]
            changed.append([title, seeds, *both, images, *(cell(row, name) for name in scores if name != headline)])
        if not row.startswith("ablation_"):
            cells = [cell(row, name) for name in scores]
            cells += [cell(row, headline, subset=subset) for subset in ("overlap", "no_overlap")]
            stop = line["stop"].replace("cut short", "**cut short**")
            summary.append([title, seeds, images, *cells, text(line, "epochs", ".1f"), stop])
        for split in SPLITS.values():
            for subset, said in SUBSETS.items():
                everything.append([title, split, said, *(cell(row, name, split, subset) for name in scores)])
        if "command" in found[0]:
            hours = {f"seconds_{part}": line[f"seconds_{part}"] / 3600 for part in ("mean", "std")}
            how = [", ".join(sorted({machine_of(row["machine"]) for row in found}))]
            how += [", ".join(sorted({row["weights"] for row in found}))]
            training.append([title, f"`{line['command']}`", text(hours, "seconds", ".2f"), *how])
    sections = {
        "Test images": summary,
        "RNN-EM with one thing changed": changed,
        "All scores": everything,
        "How they were trained": training,
    }
    shown = [f"\n## {title}\n\n{as_markdown(cells)}\n" for title, cells in sections.items() if cells[1:]]
    return INTRO + "".join(shown)


def text(line: Mapping[str, Any], name: str, form: str) -> str:
    """Format ``mean ± deviation``."""
    mean, deviation = line[f"{name}_mean"], line[f"{name}_std"]
    if mean != mean:
        return "-"
    return f"{mean:{form}}" + (f" ± {deviation:{form}}" if deviation == deviation else "")


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table; the first line is its head."""
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def machine_of(machine: Mapping[str, Any]) -> str:
    """Name a machine: device, threads, version of PyTorch."""
    return f"{machine['device']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"


def _write_csv(path: Path, lines: Sequence[Line]) -> None:
    with atomic_file(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if value != value else value for name, value in line.items()} for line in lines)
