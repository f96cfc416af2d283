"""Shipped checkpoints: made small, put into ``results/checkpoints/``, and scored again."""

import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from nem_lightning.datamodules.base import TensorFrames
from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.runs.settings import flat
from nem_lightning.scores.base import Score
from nem_lightning.training import checkpoints
from reproduce import scoring
from reproduce.rows import Row, read, row_path

COMPACT = "compact.ckpt"
"""File next to a run's ``best.ckpt`` that is scored and shipped."""
MOST_BYTES = 2_000_000
DTYPES = (torch.float32, torch.float16)
"""The first type in which the weights are small enough is used."""
TOLERANCE = 1e-3
"""Largest allowed difference of a score from the shipped one."""


def compact(path: Path, target: Path) -> str:
    """Write what :func:`nem_lightning.load` needs: the weights, and how the model is built.

    Args:
        path: the checkpoint.
        target: the new file. It is not written if an error is raised.

    Returns:
        The precision of the weights: "float32", or "float16" if they would be more than 2 MB.

    Raises:
        InputError: not a checkpoint, too large even in float16, or the model's settings name a path.
    """
    saved = checkpoints.read(path)
    config = {name: saved[checkpoints.KEY][name] for name in ("model", "module")}
    for name, value in flat(config).items():
        require(not {"/", "\\"} & {*str(value)}, f"{path}: {name}={value}: names a place; cannot be shipped")
    size = 0
    for dtype in DTYPES:
        contents = io.BytesIO()  # in memory, because torch.save stores a file's name in the file
        rounded = {name: value.to(dtype).clone() for name, value in saved["state_dict"].items()}
        torch.save({checkpoints.KEY: config, "state_dict": rounded}, contents)
        size = contents.tell()
        if size <= MOST_BYTES:
            with atomic_file(target) as file:
                file.write_bytes(contents.getvalue())
            return str(dtype).removeprefix("torch.")
    raise InputError(f"{path}: {size / 1e6:.1f} MB even in float16; must be at most {MOST_BYTES / 1e6:g} MB")


def fingerprint(path: Path) -> str:
    """Give the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ship(rows: Sequence[Row], seeds: Sequence[int], runs: Path, results: Path) -> list[Path]:
    """Put the weights that were scored into ``results/checkpoints/``.

    Raises:
        InputError: a row was not scored, or its weights are not in ``runs``; nothing is shipped then.
    """
    copies = {}
    for row in rows:
        for seed in seeds if row.trained else ():
            scored = read(row_path(results, row.name, seed))
            source = runs / row.name / f"seed-{seed}" / "checkpoints" / COMPACT
            require(
                source.is_file() and fingerprint(source) == scored["fingerprint"],
                f"{source}: is not what was scored; python -m reproduce score --rows {row.name} --seeds {seed} first",
            )
            copies[results / "checkpoints" / f"{row.name}_seed{seed}.ckpt"] = source
    require(bool(copies), "--rows: names no row that is trained, so nothing is shipped")
    for target, source in copies.items():
        with atomic_file(target) as file:
            shutil.copyfile(source, file)
    return list(copies)


def evaluate(images: TensorFrames, scores: Mapping[str, Score], results: Path, console: Console) -> bool:
    """Score every shipped checkpoint on the test images again, and print its scores beside those of the table.

    Returns:
        Whether no score differs by more than ``TOLERANCE``.

    Raises:
        InputError: there is no checkpoint.
    """
    paths = sorted((results / "checkpoints").glob("*.ckpt"))
    require(bool(paths), f"{results / 'checkpoints'}: no checkpoints in it; python -m reproduce ship puts them there")
    table = Table(title="Shipped number, and below it the number now", title_justify="left", box=box.SIMPLE_HEAD)
    for title in ("checkpoint", *(scores[name].heading.title for name in scores), "largest difference"):
        table.add_column(title, justify="right" if table.columns else "left", no_wrap=not table.columns)
    problems = []
    for path in paths:
        try:
            row, _, seed = path.stem.rpartition("_seed")
            require(bool(row) and seed.isdecimal(), f"{path}: must be called <row>_seed<seed>.ckpt")
            shipped = read(row_path(results, row, int(seed)))
            data = images.first(shipped["images"])
            (found,) = scoring.by_image(checkpoints.load_module(path, seed=0), data, scores).values()
        except InputError as error:
            problems.append(str(error))
            continue
        both = [shipped["scores"]["test"]["all"], scoring.means(found, data)["all"]]
        then, now = ({name: of.get(name) or 0.0 for name in scores} for of in both)
        apart = {name: abs(now[name] - then[name]) for name in scores}
        cells = [f"{'[red]' * (apart[name] > TOLERANCE)}{then[name]:.4f}\n{now[name]:.4f}" for name in scores]
        table.add_row(path.name, *cells, f"{max(apart.values()):.1e}")
        if far := [name for name in apart if apart[name] > TOLERANCE]:
            problems.append(f"{path}: {', '.join(far)} differ from the table's by more than {TOLERANCE:g}")
    console.print(table)
    for problem in problems:
        console.print(problem, soft_wrap=True, highlight=False, markup=False)
    return not problems
