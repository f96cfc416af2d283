"""The results on Pascal VOC as tables and files."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor

from nem_lightning.colours import groups_colours, image_pixels
from nem_lightning.files import atomic_file
from reproduce.tables import as_markdown
from reproduce.voc_scores import Summary

TRUTH = "true classes"
SHOWN = 8  # images in the picture
SMALLEST_SD = 0.0005  # smallest standard deviation that a table shows
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
    "Colours and places are six channels of one variance: whitened red, green and blue, the row, the column, and the "
    "distance from the image's middle.",
    "Features are those of a network that was trained on ImageNet with labels; groupings of feature maps are "
    "enlarged to the images' size.",
    "± is the standard deviation over runs (checkpoints, or seeds of a baseline), if it is not 0.000.",
)


def tables(result: dict[str, Any]) -> str:
    """Give the tables as Markdown."""
    scores, settings = result["scores"], result["settings"]
    title = (
        f"Pascal VOC 2012, {settings['images']} {settings['split']} images ({settings['with_instance_masks']} with "
        f"instance masks), {settings['size']} x {settings['size']}, K={settings['num_components']}"
    )
    columns = {name: [of[name] for of in scores.values() if of.get(name)] for name in COLUMNS}
    errors = {name: [one.standard_error or 0 for one in of if one.images > 1] for name, of in columns.items()}
    rows = [["", *COLUMNS.values()]]
    rows += [["images", *(str(max([one.images for one in of], default=0)) for of in columns.values())]]
    rows += [["largest standard error", *(f"{max(of):.3f}" if of else "-" for of in errors.values())]]
    rows += [[name, *(_cell(of.get(column)) for column in COLUMNS)] for name, of in scores.items()]
    shown = [f"**{title}**\n\n{as_markdown(rows)}\n\n"]
    compared = result["agreement"]
    for index, name in (("ami", "AMI (max)"), ("ari", "ARI")):
        start = f"{index} with "
        names = list(dict.fromkeys(each for of in compared.values() for each in of if each.startswith(start)))
        rows = [["", *(each.removeprefix(start) for each in names)]]
        rows += [[method, *(_cell(of.get(each)) for each in names)] for method, of in compared.items()]
        shown.append(f"**Agreement with other groupings, {name}**\n\n{as_markdown(rows)}\n\n")
    return "".join(shown)


def _cell(value: Summary | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.3f}" + (f" ± {value.sd_over_runs:.3f}" if (value.sd_over_runs or 0) >= SMALLEST_SD else "")


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    console.print(Markdown(tables(result) + "\n\n".join(NOTES)))


def write(result: dict[str, Any], picture: Figure, folder: Path, stem: str) -> dict[str, Path]:
    """Write the tables (.md, .csv), everything (.json) and the picture. Give the path of each, by what it is.

    Raises:
        InputError: the folder cannot be written.
    """
    kinds = {"table": ".md", "rows": ".csv", "everything": ".json", "picture": ".png"}
    places = {name: folder / f"{stem}{suffix}" for name, suffix in kinds.items()}
    settings = result["settings"]
    trained = [
        f"{of['method']}: `{of['file']}`, seed {of['seed']}, weights after {of['epochs']} epochs "
        f"({of['updates']} updates), T={of['num_steps']}.\n\n"
        for of in settings["checkpoints"]
    ]
    said = (
        f"Images are squashed to squares of {settings['size']} pixels (means over areas; masks by the nearest pixel), "
        "colours in [0, 1]. The paper leaves the resolution, K, the number of steps and the split open."
    )
    with atomic_file(places["table"]) as path:
        path.write_text(tables(result) + "".join(trained) + "\n\n".join([said, *NOTES]) + "\n")
    with atomic_file(places["rows"]) as path, open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "score", *Summary._fields])
        for part in (result["scores"], result["agreement"]):
            writer.writerows([name, score, *value] for name, of in part.items() for score, value in of.items() if value)
    with atomic_file(places["everything"]) as path:
        path.write_text(json.dumps(_plain(result), indent=1) + "\n")
    with atomic_file(places["picture"]) as path:
        picture.savefig(path, format="png")
    return places


def _plain(value: Any) -> Any:
    """Convert summaries to dictionaries, at any depth."""
    if isinstance(value, Summary):
        return value._asdict()
    return {name: _plain(of) for name, of in value.items()} if isinstance(value, dict) else value


def picture(groupings: dict[str, list[Tensor]], pixels: Tensor, classes: Tensor) -> Figure:
    """Draw the image, its true classes, and each method's first run: a row for each of ``SHOWN`` images.

    The images are evenly spaced over the set. Segments have the colours of the first method's matching segments;
    background and void are black in the truth.
    """
    methods = {name: runs[0] for name, runs in groupings.items() if name != "whole image"}
    chosen = torch.linspace(0, len(pixels) - 1, min(SHOWN, len(pixels))).long().tolist()
    titles = ["image", TRUTH, *methods]
    size = (1.25 * len(titles) + 0.2, 1.25 * len(chosen) + 0.5)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    axes = figure.subplots(len(chosen), len(titles), squeeze=False)
    for row, index in zip(axes, chosen, strict=True):
        first = next(iter(methods.values()))[index]
        groups = [classes[index], *(labels[index] + 1 for labels in methods.values())]
        shown = [image_pixels(pixels[index]), *(groups_colours(of, first) for of in groups)]
        for ax, colours in zip(row, shown, strict=True):
            ax.imshow(colours, vmin=0, vmax=1, interpolation="nearest")
            ax.axis("off")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(re.sub(", | (?=k-means|merged|and)", "\n", title), fontsize=8)
    return figure
