"""The scores of one row with one seed, as ``results/rows/<row>_seed<k>.json`` holds them."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed import machine
from nem_lightning import figures
from nem_lightning.datamodules import ShapesDataModule
from nem_lightning.datamodules.base import TensorImages
from nem_lightning.datamodules.shapes import SPLITS, generate
from nem_lightning.errors import InputError
from nem_lightning.files import atomic_file
from nem_lightning.training import checkpoints
from reproduce import baselines, convergence, scoring, shipping
from reproduce.rows import Row
from reproduce.training import Run, facts

COMPACT = "compact.ckpt"
"""Beside a run's ``best.ckpt``: what is scored, and shipped."""
MOST_STEPS = 20
OTHER_K = (2, 3, 4, 5, 6)
OTHER_COUNTS = (2, 3, 4, 5)
"""Objects in an image."""
OTHER_IMAGES = 1000
"""How many images each of these is scored on at most."""
OTHER_COUNTS_SEED = 1000
"""What the images with other numbers of objects are generated from: no seed of a data set here."""
SPLIT_NAMES = {"val": "validation", "test": "test"}


class Evaluator:
    """Scores rows on the validation and test images of Shapes.

    Args:
        data: the images.
        results: the folder of ``rows/`` and ``pictures/``.
        count: how many images of each split, the first; None for all.
        say: told of what is going on, a line at a time.
    """

    def __init__(self, data: ShapesDataModule, results: Path, count: int | None, say: Callable[[str], None]) -> None:
        self.results, self.count, self.say = results, count, say
        self.images = {stage: scoring.first(data.load(stage), count) for stage in SPLIT_NAMES}

    def baseline(self, row: Row, seed: int = 0) -> None:
        """Score a baseline, unless that was done."""
        path = row_path(self.results, row.name, seed)
        if self._is_done(path, row.name):
            return
        self.say(f"{path.stem}: scoring")
        grouper = baselines.grouper(row.name, seed)
        found = {stage: scoring.means(scoring.score(grouper, images)) for stage, images in self.images.items()}
        self._write(path, {**self._head(row, seed), "fingerprint": row.name, "scores": found})

    def run(self, run: Run) -> None:
        """Score a finished run's best checkpoint, unless that was done."""
        path = row_path(self.results, run.row.name, run.seed)
        fingerprint = hashlib.sha256(run.best_checkpoint.read_bytes()).hexdigest()
        if self._is_done(path, fingerprint):
            return
        self.say(f"{path.stem}: scoring {run.best_checkpoint}")
        compact = run.best_checkpoint.with_name(COMPACT)
        precision = shipping.compact(run.best_checkpoint, compact)
        module = checkpoints.load(compact)
        row, steps = run.row, module.num_steps
        grouper = scoring.trained(module, max(MOST_STEPS, steps) if row.by_step else steps, every_step=row.by_step)
        scores = scoring.score(grouper, self.images["test"])
        result = {
            **self._head(row, run.seed),
            **facts(run),
            "command": run.command,
            "checkpoint": run.best_checkpoint.relative_to(run.runs).as_posix(),
            "best_epoch": checkpoints.read(run.best_checkpoint)["epoch"] + 1,
            "fingerprint": fingerprint,
            "weights": precision,
            "num_components": module.num_components,
            "num_steps": steps,
            "num_starts": module.num_starts,
            "scores": {
                "val": scoring.means(scoring.score(scoring.trained(module), self.images["val"])),
                "test": scoring.means(scores, steps - 1 if row.by_step else -1),
            },
        }
        if row.by_step:
            by_step = [scoring.means(scores, step)["all"] for step in range(len(scores.values["ari"]))]
            result["by_step"] = by_step
        if row.other_k:
            result["other_k"] = self._other_k(compact)
        if row.convergence:
            result["convergence"] = convergence.curves(module, scoring.first(self.images["test"], convergence.IMAGES))
        if row.pictured and run.seed == 0:
            self._draw(compact, row)
        self._write(path, result)

    def _head(self, row: Row, seed: int) -> dict[str, object]:
        return {
            "row": row.name,
            "title": row.title,
            "seed": seed,
            "images": len(self.images["test"]),
            "scored_on": machine(scoring.device()),
        }

    def _is_done(self, path: Path, fingerprint: str) -> bool:
        there = read(path) if path.exists() else {}
        return there.get("fingerprint") == fingerprint and there["images"] >= len(self.images["test"])

    def _write(self, path: Path, result: dict[str, object]) -> None:
        """What is there stays where it says more: of more images, or of a row that was not cut short."""
        there = read(path) if path.exists() else None
        if there is not None and _completeness(there) > _completeness(result):
            raise InputError(
                f"{path}: is of {_said(there)}, and is kept; this would be of {_said(result)}; delete it to replace it"
            )
        with atomic_file(path) as file:
            file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")

    def _other_k(self, compact: Path) -> list[dict[str, object]]:
        """Scores with other K on the test images, and on images with other numbers of objects."""
        found = []
        test = scoring.first(self.images["test"], OTHER_IMAGES)
        for objects in OTHER_COUNTS:
            images = test if objects == 3 else _with_objects(objects, len(test))
            for k in OTHER_K if objects == 3 else sorted({3, objects}):
                module = checkpoints.load(compact, num_components=k)
                scores = scoring.means(scoring.score(scoring.trained(module), images))["all"]
                found.append({"objects": objects, "num_components": k, **scores})
        return found

    def _draw(self, compact: Path, row: Row) -> None:
        module = checkpoints.load(compact)
        module.seed = scoring.DRAWS
        _, batch = next(scoring.batches(self.images["test"]))
        with tempfile.TemporaryDirectory() as folder:
            for picture in figures.save(module, batch, Path(folder), f"test images: {row.title}").values():
                with atomic_file(self.results / "pictures" / f"{row.name}_{picture.name}") as file:
                    shutil.copyfile(picture, file)


def row_path(results: Path, row: str, seed: int) -> Path:
    return results / "rows" / f"{row}_seed{seed}.json"


def read(path: Path) -> dict[str, object]:
    """A row's scores.

    Raises:
        InputError: no such file, or not one of a row.
    """
    try:
        found = json.loads(path.read_text())
        found["row"], found["seed"], found["images"], found["scores"]["test"]["all"]["ami_max"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; python -m reproduce writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the scores of a row; delete it, and python -m reproduce writes it") from error
    return found


def _completeness(result: dict[str, object]) -> tuple[bool, int, int]:
    whole = result.get("stop") != "cut short"
    return whole, result["images"], 0 if whole else result["epochs"]


def _said(result: dict[str, object]) -> str:
    cut = f", cut short after {result['epochs']} epochs" if result.get("stop") == "cut short" else ""
    return f"{result['images']} images{cut}"


def _with_objects(count: int, num_images: int) -> TensorImages:
    """Images with so many objects each, by a seed of their own."""
    rng = np.random.default_rng([OTHER_COUNTS_SEED, count])
    images, groups = generate(min(num_images, SPLITS["test"]), 28, count, rng)
    return TensorImages(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(groups))
