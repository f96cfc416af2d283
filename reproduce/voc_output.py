"""The results on Pascal VOC as tables and files."""

import csv
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nem_lightning.figures import groups_colours, image_pixels
from nem_lightning.files import atomic_file
from nem_lightning.scores.best_overlap import VOID
from reproduce.page import table
from reproduce.voc_scores import Images, Summary

TRUTH = "true classes"
SHOWN = 8  # images in the picture
SMALLEST_SD = 0.0005  # that a table shows
COLUMNS = {
    "mbo_class": "MBO, class",
    "mbo_instance": "MBO, instance",
    "ari_class": "ARI, class",
    "ari_class_2+": "ARI, class, 2+ objects",
    "ari_instance": "ARI, instance",
    "ari_instance_2+": "ARI, instance, 2+ objects",
    "colour_r2": "colour R²",
    "segments": "segments used",
}
NOTES = (
    "MBO: mean best overlap, over all pixels but void. ARI: adjusted Rand index over the pixels of objects (an image "
    "with one object gets 1 or 0, and 1 for no grouping at all; 2+: images with at least two). Colour R²: the share "
    "of colour variance that the segments explain. Segments used: those with at least 1 % of the pixels.",
    "Agreement is over all pixels but void, background a group like the others; 0 is chance, 1 is the same grouping.",
    "± is the standard deviation over runs (checkpoints, or seeds of a baseline), where it is not 0.000.",
)


def tables(result: dict) -> list[tuple[str, list[list[str]]]]:
    """Titles, and rows of text, the first one the headings."""
    scores, settings = result["scores"], result["settings"]
    title = (
        f"Pascal VOC 2012, {settings['images']} {settings['split']} images ({settings['with_instance_masks']} with "
        f"instance masks), {settings['size']} x {settings['size']}, K={settings['num_components']}"
    )
    rows = [["", *COLUMNS.values()], ["images", *(_images(scores, column) for column in COLUMNS)]]
    rows += [["largest standard error", *(_standard_error(scores, column) for column in COLUMNS)]]
    rows += [[name, *(_cell(of.get(column)) for column in COLUMNS)] for name, of in scores.items()]
    found = [(title, rows)]
    for index, name in (("ami", "AMI (max)"), ("ari", "ARI")):
        compared = result["agreement"]
        columns = list(dict.fromkeys(column for of in compared.values() for column in of if column.startswith(index)))
        rows = [["", *(column.removeprefix(f"{index} with ") for column in columns)]]
        rows += [[name, *(_cell(of.get(column)) for column in columns)] for name, of in compared.items()]
        found.append((f"Agreement with other groupings, {name}", rows))
    return found


def _cell(value: Summary | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.3f}" + (f" ± {value.sd_over_runs:.3f}" if (value.sd_over_runs or 0) >= SMALLEST_SD else "")


def _images(scores: dict, column: str) -> str:
    return str(max(of[column].images if of.get(column) else 0 for of in scores.values()))


def _standard_error(scores: dict, column: str) -> str:
    errors = [of[column].standard_error for of in scores.values() if of.get(column)]
    errors = [error for error in errors if error is not None]
    return f"{max(errors):.3f}" if errors else "-"


def show(result: dict, console: Console) -> None:
    """Print the tables."""
    for title, (heading, *rows) in tables(result):
        shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, column in enumerate(heading):
            shown.add_column(column, justify="right" if i else "left", no_wrap=not i)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for note in NOTES:
        console.print(note, highlight=False)


def write(result: dict, groupings: dict[str, Tensor], images: Images, folder: Path, stem: str) -> dict[str, Path]:
    """Write the tables (.md, .csv), everything (.json) and the picture; what each is, and its path.

    Raises:
        InputError: the folder cannot be written.
    """
    places = {"table": ".md", "rows": ".csv", "everything": ".json", "picture": ".png"}
    places = {name: folder / f"{stem}{suffix}" for name, suffix in places.items()}
    with atomic_file(places["table"]) as path:
        path.write_text(_markdown(result))
    with atomic_file(places["rows"]) as path, open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "score", *Summary._fields])
        for part in ("scores", "agreement"):
            writer.writerows(
                [name, score, *value] for name, of in result[part].items() for score, value in of.items() if value
            )
    with atomic_file(places["everything"]) as path:
        path.write_text(json.dumps(_plain(result), indent=1) + "\n")
    with atomic_file(places["picture"]) as path:
        picture(groupings, images).savefig(path, format="png")
    return places


def _markdown(result: dict) -> str:
    lines, settings = [], result["settings"]
    for title, rows in tables(result):
        lines += [f"**{title}**", "", *table(rows), ""]
    for of in settings["checkpoints"]:
        lines += [f"RNN-EM: `{of['file']}`, seed {of['seed']}, {of['epochs']} epochs, {of['updates']} updates.", ""]
    lines += [
        f"Images are squashed to squares of {settings['size']} pixels (means over areas; masks by the nearest pixel), "
        f"colours in [0, 1]. The paper leaves the resolution, K, the number of steps ({settings['num_steps'] or '-'} "
        "here) and the split open.",
        "",
        "\n\n".join(NOTES),
    ]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> object:
    """Summaries as dictionaries, to any depth."""
    if isinstance(value, Summary):
        return value._asdict()
    return {name: _plain(of) for name, of in value.items()} if isinstance(value, dict) else value


def picture(groupings: dict[str, Tensor], images: Images) -> Figure:
    """A row an image, evenly spaced over the set: the image, its true classes, and each method's first run.

    Segments have the colours of the first method's segments that they share most pixels with; background and void
    are black in the truth.
    """
    groupings = {name: labels[0] for name, labels in groupings.items() if name != "whole image"}
    chosen = torch.linspace(0, len(images.pixels) - 1, min(SHOWN, len(images.pixels))).long().tolist()
    titles = ["image", TRUTH, *groupings]
    figure = Figure(figsize=(1.25 * len(titles) + 0.2, 1.25 * len(chosen) + 0.5), layout="constrained", dpi=120)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(len(chosen), len(titles), squeeze=False)
    for row, index in zip(axes, chosen, strict=True):
        first = next(iter(groupings.values()))[index]
        classes = images.masks["class"][index]
        pictures = [image_pixels(images.pixels[index]), groups_colours(torch.where(classes == VOID, 0, classes), first)]
        pictures += [groups_colours(labels[index] + 1, first) for labels in groupings.values()]
        for ax, shown in zip(row, pictures, strict=True):
            ax.imshow(shown, vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=False)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title.replace(" k-means", "\nk-means").replace(" merged", "\nmerged"), fontsize=8)
    return figure
