"""The results table for Shapes: train, score, tabulate. Stop it at any time; the same command goes on.

python -m reproduce                                  # everything; days on a CPU
python -m reproduce --rows recipe --seeds 0,1        # a part
python -m reproduce --rows nem --max-epochs 30       # cut short; the table says so
python -m reproduce --tables                         # tables and figures again, from results/rows/
python -m reproduce --ship --rows recipe             # the scored weights into results/checkpoints/
python -m reproduce --evaluate                       # score the shipped checkpoints again; minutes on a CPU
"""

import argparse
import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path

from rich.console import Console

from nem_lightning.errors import InputError, require, require_count
from nem_lightning.runs import command_line
from reproduce.rows import GROUPS, ROWS, SEEDS, is_the_recipe_itself, parse_seeds, select, settings


def main() -> None:
    arguments = _parser().parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nem_lightning").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    console = Console()
    try:
        sys.exit(run(arguments, console))
    except InputError as error:
        sys.exit(f"python -m reproduce: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--tables", action="store_true", help="only write tables and figures, from results/rows/")
    mode.add_argument("--ship", action="store_true", help="put the scored weights of --rows into results/checkpoints/")
    mode.add_argument("--evaluate", action="store_true", help="score the shipped checkpoints again, and compare")
    parser.add_argument(
        "--rows", default="all", metavar="ROWS", help=f"all (default), or some of {', '.join((*GROUPS, *ROWS))}"
    )
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="of trained rows (default: %(default)s)")
    parser.add_argument("--max-epochs", type=int, metavar="N", help="cut rows short that have more")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument("--images", type=int, metavar="N", help="score the first N of each split: a quick look")
    parser.add_argument("--runs", type=Path, default=Path("outputs/reproduce"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", help="further settings of train.py, such as trainer=cpu")
    return parser


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Do what was asked for. Gives the exit status: 1 where a run failed, or a score is not the shipped one.

    Raises:
        InputError: an argument that cannot be used; before anything is trained.
    """
    rows, seeds = select(arguments.rows), parse_seeds(arguments.seeds)
    for name in ("max_epochs", "jobs", "images"):
        if getattr(arguments, name) is not None:
            require_count(f"--{name.replace('_', '-')}", getattr(arguments, name))
    if arguments.tables:
        return _tables(arguments, console)
    if arguments.ship:
        from reproduce import shipped

        named = rows if arguments.rows != "all" else list(GROUPS["trained"])
        places = shipped.ship(named, seeds, arguments.runs, arguments.results)
        command_line.print_places(
            {path.stem: f"{path}, {path.stat().st_size / 1e6:.2f} MB" for path in places}, console
        )
        return 0
    if not arguments.evaluate:
        for row in rows:
            if row.is_trained:
                settings(row, tuple(arguments.overrides))  # what does not fit is said before anything is trained
    data = _data()
    if arguments.evaluate:
        from reproduce import shipped

        return 0 if shipped.evaluate(data, arguments.results, console) else 1
    failed = _train_and_score(rows, seeds, arguments, data, console)
    return _tables(arguments, console) or int(bool(failed))


def _train_and_score(rows, seeds, arguments: argparse.Namespace, data, console: Console) -> list[str]:
    """Train and score each run; baselines first. Gives the names of those that failed."""
    from reproduce.evaluation import Evaluator
    from reproduce.training import Run, train

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    evaluator = Evaluator(data, arguments.results, arguments.images, say)
    for row in rows:
        if not row.is_trained:
            evaluator.baseline(row)
    extra = tuple(arguments.overrides)
    trained = [row for row in rows if row.is_trained and not is_the_recipe_itself(row, extra)]
    runs = [Run(row, seed, arguments.runs, arguments.max_epochs, extra) for row in trained for seed in seeds]
    failed = []
    with contextlib.closing(train(runs, arguments.jobs, say)) as ended:
        for one, problem in ended:
            try:
                require(problem is None, problem)
                evaluator.run(one)
            except InputError as error:
                say(f"{one.name}: {error}")
                failed.append(one.name)
    return failed


def _tables(arguments: argparse.Namespace, console: Console) -> int:
    from reproduce import tables

    command_line.print_places(tables.write(arguments.results), console)
    return 0


def _data():
    """The published set of Shapes, generated where it is not there yet."""
    from nem_lightning.datamodules import ShapesDataModule

    data = ShapesDataModule(os.environ.get("NEM_DATA_DIR", "data"))
    data.prepare_data()
    return data


if __name__ == "__main__":
    main()
