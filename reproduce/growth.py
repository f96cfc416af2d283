"""The rows of growth: AMI and milliseconds against hidden units, training images, the size of images, and objects."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from benchmarks.steps import training_step
from nem_lightning.datamodules.shapes import generate, stills
from nem_lightning.files import atomic_file
from nem_lightning.runs.folder import RunFolder
from nem_lightning.training import checkpoints
from reproduce import plots, tables
from reproduce.evaluation import Run, write_scores
from reproduce.rows import settings
from reproduce.scoring import BATCH

FACTORS = {
    "units": "hidden units",
    "images": "training images",
    "size": "height and width in pixels",
    "objects": "objects in an image, and K",
}
"""What grows, by the second part of a row's name; the third is its value."""
SHARED = {
    "growth_units_250": {"units": 250, "images": 50_000, "size": 28},
    "growth_size_40": {"size": 40, "objects": 3},
}
"""Rows that are a point of several curves, with the row's value on each curve."""
FORMATS = {"ami_max": ".3f", "ari": ".3f", "milliseconds": ".0f"}
UPDATES, ROUNDS = 10, 3
"""Of the timing."""
INTRO = f"""# Growth

Written by `python -m reproduce tables` from `growth/`. RNN-EM with its default settings, and one thing changed. \
Scores of `train.py`: means over the first {16 * BATCH:,} test images after the last step, of pixels of exactly one \
object; AMI normalised by the larger entropy (max). *Milliseconds*: CPU time of an update, a batch of {BATCH} images, \
on one thread. *Training images*: the schedule of each row has 100,000 images in all, so fewer images are seen more \
often; only the last row has a million, each of them once. *Objects*: on images of 40 x 40 pixels. ± is the sample \
standard deviation over seeds.
"""


def score(run: Run, results: Path) -> None:
    """Keep the scores of a finished run, and measure the time of an update.

    Raises:
        InputError: the run is not finished, or has other settings.
    """
    facts = run.facts()
    scores = RunFolder(run.folder).scores()
    assert scores is not None  # facts raises without them
    facts |= {name: scores["by_step"][-1][name] for name in ("ami_max", "ari")}
    facts |= {"milliseconds": milliseconds(run), "images": scores["num_images"]}
    write_scores(results / "growth", run.row, run.seed, facts)


def milliseconds(run: Run) -> float:
    """Measure the CPU time of an update on one thread: the least of some rounds, since other work may share caches."""
    config = settings(run.row, run.extra)
    model = checkpoints.load(run.best_checkpoint)
    images, groups = generate(BATCH, config["data"]["size"], config["data"]["num_objects"], np.random.default_rng(0))
    frames = stills(images, groups).frames.float()
    model.prepare_training()
    optimizer = instantiate(config["optimizer"])(model.parameters())
    update = training_step(optimizer, lambda: model.training_loss(frames).total)
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        update()  # makes the buffers
        for _ in range(ROUNDS):
            start = time.process_time()
            for _ in range(UPDATES):
                update()
            seconds.append((time.process_time() - start) / UPDATES)
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(seconds)


def write(results: Path) -> dict[str, Path]:
    """Write ``growth.md``, and ``growth.png`` with its CSV file; give their paths, none if there are no scores."""
    rows = tables.by_row(results / "growth")
    lines = lines_of(rows)
    if not lines:
        return {}
    cells = [["what grows", "", "seeds", "AMI (max)", "ARI", "milliseconds", "command", "stopped by", "machine"]]
    for line in lines:
        found = rows[line["row"]]
        numbers = [tables.text(line, name, form) for name, form in FORMATS.items()]
        how = [f"`{tables.command(found)}`", tables.stops(found)]
        how.append(", ".join(sorted({tables.machine_of(run["machine"]) for run in found})))
        cells.append([FACTORS[line["factor"]], f"{line['value']:,}", str(line["seeds"]), *numbers, *how])
    places = {"growth": results / "growth.md"}
    with atomic_file(places["growth"]) as file:
        file.write_text(f"{INTRO}\n{tables.as_markdown(cells)}\n")
    return places | tables.write_figure(results, "growth", lines, plots.growth(lines, FACTORS))


def lines_of(rows: tables.Rows) -> list[tables.Line]:
    """Give a line for each thing that grows and each value that has scores: means and deviations over seeds."""

    def entries(run: dict[str, Any]) -> list[tables.Line]:
        _, factor, value = run["row"].split("_")
        points = SHARED.get(run["row"], {factor: int(value)})
        return [{"factor": factor, "value": value, **run} for factor, value in points.items()]

    lines = tables.lines_of(rows, entries, ("factor", "value"), FORMATS)
    return sorted(lines, key=lambda line: (list(FACTORS).index(line["factor"]), line["value"]))
