"""How often is the number of objects right, if RNN-EM chooses it? Writes number_of_objects.md into results/.

python -m reproduce.number_of_objects                       # the five shipped checkpoints: half an hour on a core
python -m reproduce.number_of_objects --images 64 --checkpoint outputs/RUN/checkpoints/best.ckpt
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from nem_lightning.datamodules.base import TensorFrames
from nem_lightning.datamodules.shapes import generate, stills
from nem_lightning.errors import InputError, require, require_count
from nem_lightning.files import atomic_file
from nem_lightning.runs.command_line import Place, print_places
from nem_lightning.scores.mutual_information import AdjustedMutualInformation
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule
from reproduce import tables
from reproduce.evaluation import machine
from reproduce.rows import ROOT
from reproduce.scoring import by_image

COUNTS = (2, 3, 4, 5)
"""Objects in an image of the mixed set."""
SEED = 1000
"""Of the generated images; no data set has it, and nothing was chosen on them."""
KNOWN = "as many as there are"


def main() -> None:
    """Read the command line, score, and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.number_of_objects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", action="append", type=Path, help="default: results/checkpoints/rnn_em_seed*")
    parser.add_argument("--images", type=int, default=320, metavar="N", help="of each set (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="default: results")
    arguments, console = parser.parse_args(), Console()
    try:
        require_count("--images", arguments.images, minimum=len(COUNTS))
        paths = arguments.checkpoint or sorted((ROOT / "results" / "checkpoints").glob("rnn_em_seed*.ckpt"))
        require(bool(paths), "--checkpoint: there are none in results/checkpoints")
        found = [scored(path, arguments.images, console) for path in paths]
        path = arguments.results / "number_of_objects.md"
        with atomic_file(path) as file:
            file.write_text(as_page(found, arguments.images))
        print_places([Place("table", path)], console)
    except InputError as error:
        sys.exit(f"python -m reproduce.number_of_objects: {error}")


def sets(images: int) -> dict[str, list[tuple[int, TensorFrames]]]:
    """Give the sets of images: by name, parts of one number of objects each."""

    def part(count: int, objects: int) -> tuple[int, TensorFrames]:
        return objects, stills(*generate(count, 28, objects, np.random.default_rng([SEED, objects])))

    return {"3": [part(images, 3)], "2 to 5": [part(images // len(COUNTS), objects) for objects in COUNTS]}


def scored(path: Path, images: int, console: Console) -> dict[tuple[str, str], tuple[float, float]]:
    """Give AMI (max) and the share of images with the right number of components, by set and choice of K."""
    module, choosing = (checkpoints.load_module(path, seed=0, sizes={"num_components": k}) for k in (None, "auto"))
    found: dict[tuple[str, str], list[torch.Tensor]] = {}
    for name, parts in sets(images).items():
        for objects, data in track(parts, f"{path.stem}, {name} objects", console=console):
            cases = ((KNOWN, module, objects), ("two more", module, objects + 2), ("auto", choosing, None))
            for choice, of, k in cases:
                found.setdefault((name, choice), []).append(_score(of, data, objects, k))
    return {key: tuple(torch.cat(parts).nanmean(0).tolist()) for key, parts in found.items()}


class NumberRight:
    """Says of each image whether the number of components with a bright pixel is the number of objects."""

    def __init__(self, objects: int) -> None:
        self.objects = objects

    def by_image(self, labels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """(B, H, W), (B, C, H, W) -> (B,), 0 or 1."""
        taken = [len(of_image[bright].unique()) for of_image, bright in zip(labels, target[:, 0] > 0, strict=True)]
        return (torch.tensor(taken) == self.objects).double()


def _score(module: GroupingModule, data: TensorFrames, objects: int, k: int | None) -> torch.Tensor:
    """Give for each image its AMI, and whether the number of components is right: (N, 2)."""
    scores: dict[str, Any] = {"ami": AdjustedMutualInformation("max"), "right": NumberRight(objects)}
    (found,) = by_image(module, data, scores, num_components=k).values()
    return torch.stack([found["ami"], found["right"]], 1)


def as_page(found: list[dict[tuple[str, str], tuple[float, float]]], images: int) -> str:
    """Give the page: means over checkpoints, and the sample standard deviation if there are several."""
    cells = [["shapes in an image", "K", "AMI (max)", "number of objects right"]]
    for name, choice in found[0]:
        spreads = [tables.spread(one[name, choice][part] for one in found) for part in (0, 1)]
        shown = [tables.text({"of_mean": of.mean, "of_std": of.deviation}, "of", ".3f") for of in spreads]
        cells.append([name, choice, *shown])
    intro = f"""# The number of objects

Written by `python -m reproduce.number_of_objects`. RNN-EM, {len(found)} checkpoints, trained on three shapes with \
K=3; {images} images of each set, 28 x 28, of a seed that no data set has; the best of 16 starts for each K; AMI \
normalised by the larger entropy. *auto*: K from 1 to 6, chosen for each image. *Right*: as many components have a \
bright pixel as there are objects. {tables.machine_of(machine())}.
"""
    return f"{intro}\n{tables.as_markdown(cells)}\n"


if __name__ == "__main__":
    main()
