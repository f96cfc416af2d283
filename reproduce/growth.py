"""The rows of growth: AMI and milliseconds against hidden units, training images, the size of images, and objects."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure

from nem_lightning.datamodules.shapes import generate, stills
from nem_lightning.files import atomic_file
from nem_lightning.runs.folder import RunFolder
from nem_lightning.training import checkpoints
from reproduce import plots, tables
from reproduce.evaluation import Run, machine
from reproduce.rows import GROUPS, settings
from reproduce.scoring import BATCH

FACTORS = {
    "units": "hidden units",
    "images": "training images",
    "size": "height and width in pixels",
    "objects": "objects in an image, and K",
}
"""What grows, by the second part of a row's name; the third is its value."""
BEST_SETTINGS = {"units": 250, "images": 50_000, "size": 28}
"""Three values of one row."""
FORMATS = {"ami_max": ".3f", "ari": ".3f", "milliseconds": ".0f"}
UPDATES, ROUNDS = 10, 3
"""Of the timing."""
INTRO = f"""# Growth

Written by `python -m reproduce tables` from `growth/`. RNN-EM with its best settings, and one thing that is changed. \
Scores of `train.py`: means over the first {16 * BATCH:,} test images after the last step, of pixels of exactly one \
object; AMI normalised by the larger entropy (max). *Milliseconds*: CPU time of an update, a batch of {BATCH} images, \
on one thread. *Training images*: each row has 100,000 images in all, so fewer images are seen more often. *Objects*: \
on images of 40 x 40 pixels. ± is the sample standard deviation over seeds.
"""


def score(run: Run, results: Path) -> None:
    """Keep the scores of a finished run, and measure the time of an update.

    Raises:
        InputError: the run is not finished, or has other settings.
    """
    facts = run.facts()
    scores = RunFolder(run.folder).scores()
    assert scores is not None  # facts raises without them
    path = results / "growth" / f"{run.row.name}_seed{run.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"row": run.row.name, "title": run.row.title, "seed": run.seed, "machine": machine(), **facts}
    whole |= {name: scores["by_step"][-1][name] for name in ("ami_max", "ari")}
    whole["milliseconds"] = milliseconds(run)
    with atomic_file(path) as file:
        file.write_text(json.dumps({**whole, "images": scores["num_images"]}, indent=1) + "\n")


def milliseconds(run: Run) -> float:
    """Measure the CPU time of an update on one thread: the least of some rounds, since other work may share caches."""
    config = settings(run.row, run.extra)
    module = checkpoints.load_module(run.best_checkpoint)
    optimizer = instantiate(config["optimizer"])(module.parameters())
    images, groups = generate(BATCH, config["data"]["size"], config["data"]["num_objects"], np.random.default_rng(0))
    frames = stills(images, groups).frames.float()
    module.model.prepare_training()

    def update() -> None:
        optimizer.zero_grad()
        module.model.training_loss(frames).total.backward()
        optimizer.step()

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
    """Write ``growth.md`` and ``growth.png``, and give their paths by what they are; none if there are no scores."""
    runs = [json.loads(path.read_text()) for path in sorted((results / "growth").glob("*.json"))]
    if not runs:
        return {}
    places = {"growth": results / "growth.md", "growth, drawn": results / "growth.png"}
    lines = lines_of(runs)
    cells = [["what grows", "", "seeds", "AMI (max)", "ARI", "milliseconds", "command", "stopped by", "machine"]]
    for line in lines:
        numbers = [tables.text(line, name, form) for name, form in FORMATS.items()]
        how = [f"`{line['command']}`", line["stop"], line["machine"]]
        cells.append([FACTORS[line["factor"]], f"{line['value']:,}", str(line["seeds"]), *numbers, *how])
    with atomic_file(places["growth"]) as file:
        file.write_text(f"{INTRO}\n{tables.as_markdown(cells)}\n")
    with atomic_file(places["growth, drawn"]) as file:
        draw(lines).savefig(file, format="png", dpi=130)
    return places


def lines_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give a line for each thing that grows and each value that has scores: means and deviations over seeds."""
    lines = []
    for row in GROUPS["growth"]:
        found = [run for run in runs if run["row"] == row.name]
        if found:
            of_row = {"seeds": len(found), "stop": tables.stops(found), "command": tables.command(found)}
            of_row["machine"] = tables.machine_of(found[0]["machine"])
            for name in FORMATS:
                over_seeds = tables.spread(run[name] for run in found)
                of_row |= {f"{name}_mean": over_seeds.mean, f"{name}_std": over_seeds.deviation}
            _, factor, value = row.name.split("_")
            points = BEST_SETTINGS if row.name == "growth_units_250" else {factor: int(value)}
            lines += [{"factor": factor, "value": value, **of_row} for factor, value in points.items()]
    return sorted(lines, key=lambda line: (list(FACTORS).index(line["factor"]), line["value"]))


def draw(lines: list[dict[str, Any]]) -> Figure:
    """Draw AMI above milliseconds, a column for each thing that grows."""
    drawn = {factor: title for factor, title in FACTORS.items() if factor in {line["factor"] for line in lines}}
    figure = Figure(figsize=(3.5 * len(drawn), 6.5), layout="constrained")
    axes = figure.subplots(2, len(drawn), sharex="col", sharey="row", squeeze=False)
    for column, (factor, title) in enumerate(drawn.items()):
        points = [line for line in lines if line["factor"] == factor]
        for row, (name, said) in enumerate((("ami_max", "AMI (max)"), ("milliseconds", "CPU milliseconds an update"))):
            plots.band(axes[row, column], points, "value", name)
            axes[row, column].set(ylabel=said if column == 0 else "", xscale="log")
            axes[row, column].grid(alpha=0.3)
        axes[1, column].set(xlabel=title, yscale="log")
        axes[1, column].set_xticks([point["value"] for point in points], [f"{point['value']:,}" for point in points])
        axes[1, column].xaxis.minorticks_off()
    ticks = [20, 50, 100, 200, 500]
    axes[1, 0].set_yticks(ticks, [str(tick) for tick in ticks])
    axes[1, 0].yaxis.set_minor_formatter("")
    return figure
