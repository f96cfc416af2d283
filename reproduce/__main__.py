"""The results table for Shapes: train, score, tabulate. Stop a command at any time; the same command goes on.

python -m reproduce all                                         # everything; days on a CPU
python -m reproduce train --rows rnn_em --seeds 0,1             # prints and runs a sweep of train.py for each row
python -m reproduce train --rows nem trainer.max_epochs=30      # cut short; the table says so
python -m reproduce score --rows nem trainer.max_epochs=30      # with the same settings: best checkpoints, baselines
python -m reproduce tables                                      # tables and figures, from the scores in results/ alone
python -m reproduce ship --rows rnn_em                          # puts the scored weights into results/checkpoints/
python -m reproduce evaluate                                    # score the shipped checkpoints again
"""

import argparse
import functools
import logging
import os
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from rich.console import Console

from nem_lightning.errors import InputError, require_count
from nem_lightning.runs.command_line import Place, print_places
from nem_lightning.runs.hints import argument
from reproduce.rows import GROUPS, ROOT, ROWS, SEEDS, Row, parse_seeds, select, settings


def main() -> None:
    """Read the command line, and run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("all", "train", "score", "tables", "ship", "evaluate"))
    named = ", ".join((*GROUPS, *ROWS))
    parser.add_argument("--rows", default="all", metavar="ROWS", help=f"all (default), or some of {named}")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="of trained rows (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument("--images", type=int, metavar="N", help="score the first N of each split: a quick look")
    parser.add_argument("--runs", type=Path, default=Path("outputs/reproduce"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", help="further settings of train.py, such as trainer=cpu")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nem_lightning").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    try:
        sys.exit(run(parser.parse_intermixed_args(), Console()))
    except InputError as error:
        sys.exit(f"python -m reproduce: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the command, and give the exit status: 1 if a run failed, or a score differs from the shipped one.

    Raises:
        InputError: an argument that cannot be used; raised before anything is trained.
    """
    rows, seeds, extra = select(arguments.rows), parse_seeds(arguments.seeds), tuple(arguments.overrides)
    failed = False
    require_count("--jobs", arguments.jobs)
    require_count("--images", 1 if arguments.images is None else arguments.images)
    trained = [row for row in rows if row.trained]
    for row in trained if arguments.command in ("all", "train", "score") else ():
        settings(row, extra)  # raises before anything is trained
    if arguments.command in ("all", "train"):
        failed = not all([train(row, seeds, arguments.runs, arguments.jobs, extra, console) for row in trained])
    if arguments.command in ("all", "score"):
        failed = not score(rows, seeds, arguments, console) or failed
    if arguments.command in ("all", "tables"):
        from reproduce import growth, peers, sequences, tables

        written = tables.write(arguments.results) | growth.write(arguments.results)
        places = [Place(*place) for place in written.items()]
        others = {"sequences": sequences.write(arguments.results), "other models": peers.write(arguments.results)}
        print_places(places + [Place(name, path) for name, path in others.items() if path], console)
    if arguments.command == "ship":
        from reproduce import shipped

        named = rows if arguments.rows != "all" else GROUPS["trained"]
        placed = shipped.ship(named, seeds, arguments.runs, arguments.results)
        print_places([Place(path.stem, f"{path}, {path.stat().st_size / 1e6:.2f} MB") for path in placed], console)
    if arguments.command == "evaluate":
        from reproduce import scoring, shipped

        failed = not shipped.evaluate(shapes().load("test"), scoring.scores_by_image(), arguments.results, console)
    return int(failed)


def train(row: Row, seeds: list[int], runs: Path, jobs: int, extra: tuple[str, ...], console: Console) -> bool:
    """Train a row with each seed: a sweep of ``train.py``, which resumes stopped runs.

    Returns:
        Whether all runs of the row are finished.

    Raises:
        KeyboardInterrupt: the sweep was stopped.
    """
    words = ["-m", *row.overrides, f"seed={','.join(map(str, seeds))}", *extra]
    words += [argument("hydra.sweep.dir", runs / row.name), "logger=csv"]
    if jobs > 1:
        words += ["hydra/launcher=submitit_local", f"hydra.sweeper.max_batch_size={jobs}"]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    console.print(
        f"OMP_NUM_THREADS={threads} python train.py {shlex.join(words)}", soft_wrap=True, highlight=False, markup=False
    )
    before = signal.getsignal(signal.SIGTERM)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], env={**os.environ, "OMP_NUM_THREADS": threads}
    ) as sweep:
        signal.signal(signal.SIGTERM, lambda *_: sweep.terminate())  # train.py saves, and stops
        try:
            status = sweep.wait()
        except KeyboardInterrupt:  # Ctrl-C also reaches train.py, which saves, and stops
            sweep.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if status < 0 or status > 128:  # a signal ended the sweep
        raise KeyboardInterrupt
    return status == 0


def score(rows: list[Row], seeds: list[int], arguments: argparse.Namespace, console: Console) -> bool:
    """Score the baselines, and the finished runs of the other rows. Say whether all of them could be scored."""
    from reproduce import growth, peers, sequences
    from reproduce.evaluation import Evaluator, Run

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    @functools.cache
    def evaluator() -> Evaluator:  # the rows of sequences do not need Shapes
        return Evaluator(shapes(), arguments.results, arguments.images, say)

    def score_seed(row: Row, seed: int) -> None:
        run = Run(row, seed, arguments.runs, tuple(arguments.overrides)) if row.trained else None
        if row in GROUPS["peers"]:
            peers.score(row, seed, run, arguments.runs / row.name / f"seed-{seed}", arguments.results, say)
        elif run is None:
            evaluator().baseline(row)
        elif row in GROUPS["sequences"]:
            sequences.score(run, arguments.results, say)
        elif row in GROUPS["growth"]:
            growth.score(run, arguments.results)
        else:
            evaluator().run(run)

    problems = 0
    for row in rows:
        for seed in seeds if row.trained else seeds[:1]:
            try:
                score_seed(row, seed)
            except InputError as error:
                say(f"{row.name}, seed {seed}: {error}")
                problems += 1
    return not problems


def shapes():
    """Give the published set of Shapes, generated if the file does not exist yet."""
    from nem_lightning.datamodules import ShapesDataModule

    data = ShapesDataModule(os.environ.get("NEM_DATA_DIR", "data"))
    data.prepare_data()
    return data


if __name__ == "__main__":
    main()
