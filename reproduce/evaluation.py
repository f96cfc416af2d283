"""The scores of one row with one seed, as ``results/rows/<row>_seed<k>.json`` holds them."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra.utils import instantiate

from nem_lightning import figures
from nem_lightning.datamodules.base import FramesDataModule, TensorFrames
from nem_lightning.datamodules.shapes import generate, stills
from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.models.em import NeuralEM
from nem_lightning.report import runs as report
from nem_lightning.runs.folder import CONFIG, SCORES, RunFolder
from nem_lightning.runs.hints import argument
from nem_lightning.runs.settings import comparable, differences
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule
from reproduce import convergence, scoring, shipped
from reproduce.rows import ROOT, STEPS, Row, read, row_path, settings

STAGES = ("val", "test")
VALIDATED = ("ami_max", "reconstruction_error", "loss")
"""Scores that are kept for each epoch of a training."""
OTHER_K = (2, 3, 4, 5, 6)
OTHER_COUNTS = (2, 3, 4, 5)
"""Objects in an image."""
FEW = 1000
"""The largest number of images for other K, other numbers of objects, and convergence."""
OTHER_COUNTS_SEED = 1000
"""Seed of the images with other numbers of objects; no data set here uses it."""
SEEDS_OF_A_RUN = ("seed", "*.seed")
KEPT = ("model.", "module.", "optimizer.", "data.", "trainer.limit_")
"""The settings that are kept with the scores, by the start of their names."""


@dataclass(frozen=True)
class Run:
    """The run of ``train.py`` for a row and a seed."""

    row: Row
    seed: int
    runs: Path
    """The folder of all runs."""
    extra: tuple[str, ...] = ()
    """Further overrides of ``train.py``."""

    @property
    def folder(self) -> Path:
        """The folder that Hydra gives a run of the row's sweep."""
        return self.runs / self.row.name / f"seed-{self.seed}"

    @property
    def best_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    def facts(self) -> dict[str, Any]:
        """Say how the run was trained: command, epochs, why it stopped, seconds, settings.

        Raises:
            InputError: the run is not finished, or its settings are not those of the row.
        """
        scores = RunFolder(self.folder).scores()
        if scores is None or not self.best_checkpoint.is_file():
            raise InputError(f"{self.folder}: no finished run; python -m reproduce train --rows {self.row.name} first")
        config = yaml.safe_load((self.folder / CONFIG).read_text())
        others = differences(config, settings(self.row, (*self.extra, f"seed={self.seed}")), but=SEEDS_OF_A_RUN)
        said = "; ".join(map(str, others[:3]))
        require(not others, f"{self.folder}: was trained with other settings ({said}); name them, or move it away")
        epochs, most = scores["epochs"], config["trainer"]["max_epochs"]
        planned = settings(self.row)["trainer"]["max_epochs"]
        known = comparable(config, but=SEEDS_OF_A_RUN)
        return {
            "command": " ".join(["python train.py", *self.row.overrides, f"seed={self.seed}", *self.extra]),
            "epochs": epochs,
            "planned_epochs": planned,
            "stop": "early stopping" if epochs < most else "cut short" if epochs < planned else "end of the schedule",
            "seconds": scores["seconds"],
            "settings": {name: value for name, value in known.items() if name.startswith(KEPT)},
            "best_epoch": checkpoints.read(self.best_checkpoint)["epoch"] + 1,
        }

    def by_epoch(self) -> list[dict[str, float]]:
        """Give the validation scores after each epoch."""
        curves = report.read(self.folder)
        assert curves is not None
        found: dict[int, dict[str, float]] = {}
        for name in VALIDATED:
            for epoch, value in curves.curves.get(f"val/{name}", {}).items():
                found.setdefault(epoch, {"epoch": epoch})[name] = value
        return [found[epoch] for epoch in sorted(found)]


def evaluated(folder: Path, words: Sequence[str], since: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Give the scores of a run of ``evaluate.py``; those of an earlier run are read from its folder.

    Args:
        folder: of the run.
        words: the settings.
        since: a checkpoint; an earlier run must be newer.
        say: prints the command.

    Raises:
        InputError: the command failed.
    """
    if folder.exists():
        was_stopped = not (folder / SCORES).exists()
        of_earlier_training = since is not None and folder.stat().st_mtime < since.stat().st_mtime
        if was_stopped or of_earlier_training:
            shutil.rmtree(folder)
    if not (folder / SCORES).exists():
        say(f"python evaluate.py {' '.join(words)}")
        command = [sys.executable, str(ROOT / "evaluate.py"), *words, argument("hydra.run.dir", folder.absolute())]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
            raise InputError(f"{folder}: evaluate.py failed")
    return json.loads((folder / SCORES).read_text())


@dataclass
class Evaluator:
    """Scores rows on the validation and test images of Shapes."""

    data: FramesDataModule
    results: Path
    """The folder of ``rows/`` and ``pictures/``."""
    count: int | None
    """The number of first images of each split to score; None for all."""
    say: Callable[[str], None]
    """Prints a line about the progress."""
    images: dict[str, TensorFrames] = field(init=False)

    def __post_init__(self) -> None:
        self.images = {stage: self.data.load(stage).first(self.count) for stage in STAGES}
        self.scores = scoring.scores_by_image()

    def baseline(self, row: Row) -> None:
        """Score a baseline, unless it was scored before."""
        module = GroupingModule(instantiate(settings(row)["model"]))
        self._score(row, 0, module, {"fingerprint": " ".join(row.overrides)})

    def run(self, run: Run) -> None:
        """Score a finished run's best checkpoint, unless it was scored before.

        Raises:
            InputError: as :meth:`Run.facts`, or the scores would replace those of more images or epochs.
        """
        facts = run.facts() | {"by_epoch": run.by_epoch()}
        small = run.best_checkpoint.with_name(shipped.COMPACT)
        facts["weights"] = shipped.compact(run.best_checkpoint, small)
        facts["fingerprint"] = shipped.fingerprint(small)
        module = checkpoints.load_module(small, seed=0)
        facts |= {name: getattr(module.model, name) for name in ("num_components", "num_steps", "num_starts")}
        self._score(run.row, run.seed, module, facts)

    def _score(self, row: Row, seed: int, module: GroupingModule, facts: dict[str, Any]) -> None:
        path, test = row_path(self.results, row.name, seed), self.images["test"]
        there = read(path) if path.exists() else None
        if there is not None and there["fingerprint"] == facts["fingerprint"] and there["images"] >= len(test):
            return
        result = {"row": row.name, "title": row.title, "seed": seed, "images": len(test), "machine": machine(), **facts}
        if there is not None:
            require(
                _completeness(there) <= _completeness(result),
                f"{path}: is of {_said(there)}, and is kept; this would be of {_said(result)}; delete it to replace it",
            )
        self.say(f"{path.stem}: scoring")
        last = module.model.num_steps
        (of_val,) = scoring.by_image(module, self.images["val"], self.scores).values()
        of_test = scoring.by_image(module, test, self.scores, {last, *STEPS} if row.in_detail else {last})
        result["headings"] = {name: list(score.heading) for name, score in self.scores.items()}
        result["scores"] = {
            "val": scoring.means(of_val, self.images["val"]),
            "test": scoring.means(of_test[last], test),
        }
        if row.in_detail:
            by_step = {steps: scoring.means(of_step, test)["all"] for steps, of_step in of_test.items()}
            result["by_step"] = [{"steps": steps, **found} for steps, found in by_step.items()]
            result["other_k"] = self._other_k(module)
            if isinstance(module.model, NeuralEM):
                result["convergence"] = convergence.curves(module, test.first(FEW))
            if seed == 0:
                self._draw(module, row)
        with atomic_file(path) as file:
            file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")

    def _other_k(self, module: GroupingModule) -> list[dict[str, Any]]:
        """Score with other K on the test images, and on images with other numbers of objects."""
        found = []
        test = self.images["test"].first(FEW)
        for objects in OTHER_COUNTS:
            rng = np.random.default_rng([OTHER_COUNTS_SEED, objects])
            data = test if objects == 3 else stills(*generate(len(test), test.frames.shape[-1], objects, rng))
            for k in OTHER_K if objects == 3 else sorted({3, objects}):
                (of_k,) = scoring.by_image(module, data, self.scores, num_components=k).values()
                found.append({"objects": objects, "num_components": k, **scoring.means(of_k, data)["all"]})
        return found

    def _draw(self, module: GroupingModule, row: Row) -> None:
        batch = next(scoring.batches(self.images["test"]))
        generator = module.generator("test", 0)
        with tempfile.TemporaryDirectory() as folder:
            pictures = figures.save(module.model, batch, generator, Path(folder), f"test images: {row.title}")
            for picture in filter(None, pictures):
                with atomic_file(self.results / "pictures" / f"{row.name}_{picture.name}") as file:
                    shutil.copyfile(picture, file)


def write_scores(folder: Path, row: Row, seed: int, found: Mapping[str, Any]) -> None:
    """Write what was found of a row with a seed, and the machine, to a file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"row": row.name, "title": row.title, "seed": seed, "machine": machine(), **found}
    with atomic_file(folder / f"{row.name}_seed{seed}.json") as file:
        file.write_text(json.dumps(whole, indent=1) + "\n")


def machine() -> dict[str, str | int]:
    """Describe this machine.

    Score rows on the machine that trained them, because the results name this machine next to the seconds of training.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else [*names, platform.machine()][0]
    threads = torch.get_num_threads()
    return {"device": device, "threads": threads, "torch": torch.__version__, "cores": os.cpu_count() or 1}


def _completeness(result: dict[str, Any]) -> tuple[bool, int, int]:
    whole = result.get("stop") != "cut short"
    return whole, result["images"], 0 if whole else result["epochs"]


def _said(result: dict[str, Any]) -> str:
    cut = f", cut short after {result['epochs']} epochs" if result.get("stop") == "cut short" else ""
    return f"{result['images']} images{cut}"
