"""Shipped checkpoints: put into ``results/checkpoints/``, and scored again."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from nem_lightning.datamodules import ShapesDataModule
from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.runs import command_line
from nem_lightning.training import checkpoints
from reproduce import scoring
from reproduce.evaluation import COMPACT, read, row_path
from reproduce.rows import Row

TOLERANCE = 1e-3
"""How far a score may be from the shipped one."""


def ship(rows: Sequence[Row], seeds: Sequence[int], runs: Path, results: Path) -> list[Path]:
    """Put the weights that were scored into ``results/checkpoints/``.

    Raises:
        InputError: a row was not scored, or its run is not in ``runs``; nothing is shipped then.
    """
    copies = {}
    for row in rows:
        for seed in seeds if row.is_trained else ():
            scores = read(row_path(results, row.name, seed))
            source = (runs / scores["checkpoint"]).with_name(COMPACT)
            require(source.is_file(), f"{source}: no such file; python -m reproduce --rows {row.name} writes it")
            copies[results / "checkpoints" / f"{row.name}_seed{seed}.ckpt"] = source
    require(bool(copies), "--rows: names no row that is trained, so nothing is shipped")
    for target, source in copies.items():
        with atomic_file(target) as file:
            shutil.copyfile(source, file)
    return list(copies)


def evaluate(data: ShapesDataModule, results: Path, console: Console) -> bool:
    """Score every shipped checkpoint on the test images again, and print its scores beside those of the table.

    Returns:
        Whether all are the same, but for ``TOLERANCE``.

    Raises:
        InputError: there is none.
    """
    paths = sorted((results / "checkpoints").glob("*.ckpt"))
    require(bool(paths), f"{results / 'checkpoints'}: no checkpoints in it; python -m reproduce --ship puts them there")
    images = data.load("test")
    table = Table(title="Shipped number, and below it the number now", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("checkpoint\n", no_wrap=True)
    for name in scoring.SCORES:
        table.add_column(command_line.COLUMNS[name], justify="right")
    problems = []
    for path in paths:
        try:
            before = read(row_path(results, *_row_and_seed(path)))
            module = checkpoints.load(path)
            of_table = scoring.first(images, before["images"])
            now = scoring.means(scoring.score(scoring.trained(module), of_table))["all"]
        except InputError as error:
            problems.append(str(error))
            table.add_row(path.name, *["[red]none"] * len(scoring.SCORES))
            continue
        then = before["scores"]["test"]["all"]
        far = {name: abs(now[name] - then[name]) > TOLERANCE for name in scoring.SCORES}
        cells = [f"{'[red]' * far[name]}{then[name]:.4f}\n{now[name]:.4f}" for name in scoring.SCORES]
        table.add_row(path.name, *cells)
        if any(far.values()):
            named = ", ".join(name for name in far if far[name])
            problems.append(f"{path}: {named} differ from the table's by more than {TOLERANCE:g}")
    console.print(table)
    for problem in problems:
        console.print(problem, soft_wrap=True, highlight=False, markup=False)
    return not problems


def _row_and_seed(path: Path) -> tuple[str, int]:
    row, _, seed = path.stem.rpartition("_seed")
    require(bool(row) and seed.isdecimal(), f"{path}: must be called <row>_seed<seed>.ckpt")
    return row, int(seed)
