"""The rows of sequences: ``evaluate.py`` scores each run, also with another K, other objects and more frames."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nem_lightning.files import atomic_file
from nem_lightning.runs.hints import argument
from reproduce import tables
from reproduce.evaluation import Run, evaluated, write_scores
from reproduce.rows import GROUPS, ROWS, Row, settings

PUBLISHED = {
    ("flying_shapes", 3, 3, 3): "0.970",
    ("flying_shapes", 3, 3, 5): "0.972",
    ("flying_shapes", 5, 5, 5): "0.878",
    ("flying_shapes", 5, 3, 5): "0.981",
    ("flying_mnist, all digits", 2, 2, 2): "0.819; in stages 0.917",
}
"""Published AMI, on another motion, as recalled by others.

Keys: data set, objects in training, objects in the test, K in the test.
"""
INTRO = """# Sequences

Written by `python -m reproduce tables` from `sequences/`. Next-frame prediction; the first 1,024 test sequences of \
each set, or 256 for convolutions; the best of 16 starts, if no other number is said; AMI normalised by the larger \
entropy. *Mean*: over the steps. *Loss* and *upper bound*: of the next frame after the last step, nats a frame. The \
published figures are on another motion.
"""


def tests(row: Row) -> list[tuple[str, ...]]:
    """Give the overrides of ``evaluate.py`` for each test of a row: as trained, and with other numbers."""
    _, objects, components = _trained(row)
    of_digits = tuple(each for each in row.overrides if each.startswith("data.num_digits_used="))
    trainer = settings(row)["trainer"]
    limits = [f"trainer.limit_test_batches={trainer['limit_test_batches']}"]
    if trainer["precision"] != "32-true":
        limits.append(f"trainer.precision={trainer['precision']}")
    cases = [(objects, components, 20)]
    if components > 1:
        cases.append((objects, components, 40))
        if not of_digits:
            cases += [(objects, 8 - components, 20), (8 - objects, 8 - components, 20)]
    return [
        (
            _data(row),
            f"data.num_objects={count}",
            *of_digits,
            f"num_components={k}",
            f"num_steps={steps}",
            f"data.num_frames={steps + 1}",
            *limits,
        )
        for count, k, steps in cases
    ]


def _data(row: Row) -> str:
    """Give the override that chooses the data set, such as ``data=flying_shapes``."""
    (override,) = [each for each in row.overrides if each.startswith("data=")]
    return override


def _trained(row: Row) -> tuple[str, int, int]:
    """Give the data set, the number of objects and K of a row's training."""
    name, config = _data(row).removeprefix("data="), settings(row)
    if "num_digits_used" in config["data"]:
        name += f", {config['data']['num_digits_used']} digits"
    return name, config["data"]["num_objects"], config["model"]["num_components"]


def score(run: Run, results: Path, say: Callable[[str], None]) -> None:
    """Score a finished run by ``evaluate.py``; the scores of earlier tests are read from their files.

    Raises:
        InputError: the run is not finished, has other settings, or a test failed.
    """
    facts = run.facts()
    found = []
    for overrides in tests(run.row):
        folder = run.folder / "tests" / "_".join(each.rpartition("=")[2] for each in overrides)
        words = [argument("ckpt_path", run.best_checkpoint.absolute()), *overrides]
        scores = evaluated(folder, words, run.best_checkpoint, say)
        last, mean = scores["by_step"][-1], scores["mean_over_steps"]
        found.append(
            {
                "overrides": list(overrides),
                **{name: scores[name] for name in ("num_images", "num_components", "num_steps", "num_starts")},
                **{name: last.get(name) for name in ("ami_max", "ami_arithmetic", "ari", "loss", "upper_bound")},
                "ami_max_mean": mean["ami_max"],
            }
        )
    write_scores(results / "sequences", run.row, run.seed, {**facts, "tests": found})


def write(results: Path) -> Path | None:
    """Write ``sequences.md``, and give its path; None if there are no scores."""
    found = tables.by_row(results / "sequences")
    if not found:
        return None
    runs = [run for row in GROUPS["sequences"] for run in found.get(row.name, [])]
    head = ["trained on (objects, K)", "network", "seed", "tested on (objects, K, T)"]
    head += ["AMI, last", "AMI, mean", "ARI, last", "loss", "upper bound", "published AMI"]
    cells = [head, *(line for run in runs for line in _lines(run))]
    how = [["trained on", "network", "seed", "command", "epochs", "stopped by", "hours", "machine"]]
    for run in runs:
        name, objects, components = _trained(ROWS[run["row"]])
        facts = [f"`{run['command']}`", str(run["epochs"]), run["stop"], f"{run['seconds'] / 3600:.2f}"]
        facts.append(tables.machine_of(run["machine"]))
        how.append([f"{name} ({objects}, {components})", run["title"], str(run["seed"]), *facts])
    path = results / "sequences.md"
    with atomic_file(path) as file:
        trained = f"\n## How they were trained\n\n{tables.as_markdown(how)}\n"
        file.write_text(f"{INTRO}\n{tables.as_markdown(cells)}\n{trained}")
    return path


def _lines(run: dict[str, Any]) -> list[Sequence[str]]:
    name, objects, components = _trained(ROWS[run["row"]])
    lines = []
    for test in run["tests"]:
        given = dict(each.split("=", 1) for each in test["overrides"])
        count, k, steps = int(given.get("data.num_objects", objects)), test["num_components"], test["num_steps"]
        numbers = [f"{test[name]:.3f}" for name in ("ami_max", "ami_max_mean", "ari")]
        numbers += [f"{test[name]:.1f}" for name in ("loss", "upper_bound")]
        known = PUBLISHED.get((name, objects, count, k), "-") if steps == 20 else "-"
        what = [f"{name} ({objects}, {components})", run["title"], str(run["seed"]), f"({count}, {k}, {steps})"]
        lines.append([*what, *numbers, known])
    return lines
