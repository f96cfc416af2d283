"""Sweeps: the names of their runs, how a sweep goes on after a run that failed, and the summary at the end."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file
from nem_lightning.runs.folder import RunFolder
from nem_lightning.runs.hints import override

log = logging.getLogger(__name__)

SWEEP = "NEM_SWEEP"
"""An id of the sweep that a command started, for its jobs."""
ASKED, FINISHED = "asked.json", "finished"
VISIBLE = "NEM_VISIBLE_DEVICES"
"""CUDA_VISIBLE_DEVICES of the process that starts a sweep: submitit hides the GPUs from jobs on the same machine."""


def in_sweep() -> bool:
    """Whether this is a run of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def name_of_run(overrides: list[str], not_swept: list[str], seed: int | str, longest: int = 100) -> str:
    """A folder's name from the settings that differ between the runs of a sweep, such as ``num_steps-5_seed-0``.

    Args:
        overrides: of the run, such as ``model.num_steps=5``.
        not_swept: keys that are the same in all runs.
        seed: of the run, always named: others may come later.
        longest: characters; a longer name is cut.

    Returns:
        The name. If it does not say all (it is cut, or a number is rounded), it ends in a hash of the whole.
    """
    settings = {}
    for one in overrides:
        key, _, value = one.lstrip("+~").partition("=")
        if key not in not_swept and key != "seed":
            settings[key] = value
    short = [key.rpartition(".")[2] for key in settings]
    names = {key: name if short.count(name) == 1 else key for key, name in zip(settings, short, strict=True)}
    whole = "_".join([*(f"{names[key]}-{settings[key]}" for key in sorted(settings)), f"seed-{seed}"])
    rounded = re.sub(r"\d*\.\d{5,}(e-?\d+)?", lambda number: f"{float(number[0]):.3g}", whole)
    clean = re.sub(r"[^\w.+-]", "-", rounded)
    if clean == whole and len(whole) <= longest:
        return whole
    return f"{clean[: longest - 9]}-{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"


class PrepareSweep(Callback):
    """A Hydra callback that prepares a sweep: which runs are asked for, what they have in common, and which GPUs there
    are."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        task = plain_overrides(config.hydra.overrides.task)
        swept = {o.get_key_element(): o.is_sweep_override() for o in OverridesParser.create().parse_overrides(task)}
        same = [key.lstrip("+~") for key, is_swept in swept.items() if not is_swept]  # the last one of a key counts
        with read_write(config.hydra), open_dict(config.hydra):
            keys = ",".join(f"'{key}'" for key in same)
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
        os.environ[SWEEP] = f"{os.getpid()}-{time.time_ns()}"
        names = _names_of_runs(config, task, same)
        if names is not None:
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                sys.exit(f"{' '.join(task)}: asks for several runs named {twice[0]}; ask for each run once")
            (outcomes := _outcomes(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
            (outcomes / ASKED).write_text(json.dumps(names))
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            os.environ[VISIBLE] = os.environ.get("CUDA_VISIBLE_DEVICES", "")


def plain_overrides(overrides: Sequence[str]) -> list[str]:
    """Give overrides as they were typed: only the run itself may be able to resolve what ``${...}`` in them means."""
    return [str(override) for override in OmegaConf.to_container(overrides, resolve=False) or ()]


def _names_of_runs(config: DictConfig, task: list[str], same: list[str]) -> list[str] | None:
    """Give the names of all runs that Hydra's own sweeper will start; None for other sweepers and names."""
    choices, sweep = config.hydra.runtime.choices, OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(sweep, dict)
    if choices["hydra/sweeper"] != "basic" or sweep["subdir"] != "${run_in_sweep:${seed}}":
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *task])
    sweeps_group = any(o.is_sweep_override() and o.get_key_element() in choices for o in overrides)
    names = []
    for run in BasicSweeper.split_arguments(overrides, None)[0]:
        seeds = [override.partition("=")[2] for override in run if re.match(r"\+*seed=", override)]
        if sweeps_group and not seeds:  # a file may set the seed
            return None
        names.append(name_of_run(run, same, seeds[0] if seeds else config.seed))
    return names


def _outcomes(sweep: str) -> Path:
    """Give the folder in which the runs of this sweep, started by this command, write what became of them."""
    return Path(sweep) / ".outcomes" / os.environ.get(SWEEP, "unknown")


@contextlib.contextmanager
def keep_going_without_killed_jobs() -> Iterator[None]:
    """Let a sweep of jobs go on if a job is killed and leaves no result, for as long as the block runs.

    submitit offers no way to say so: ``Job.results`` is replaced, and put back at the end of the block.

    Raises:
        SystemExit: with status 1, at the end of the block, if a job was killed.
    """
    from submitit.core.core import Job
    from submitit.core.utils import UncompletedJobError

    original, killed = Job.results, []

    def results(self: Job) -> list[JobReturn]:
        try:
            return original(self)
        except UncompletedJobError as error:
            killed.append(self)
            log.error("job %s was killed; its output is in %s", self.job_id, self.paths.folder)
            if _ends_at_failures():
                return [JobReturn(status=JobStatus.COMPLETED, _return_value=float("nan"))]
            return [JobReturn(status=JobStatus.FAILED, _return_value=error)]

    Job.results = results
    try:
        yield
    finally:
        Job.results = original
    if killed:
        sys.exit(1)


@contextlib.contextmanager
def keep_going_without_failed_run() -> Iterator[None]:
    """Note for the sweep's summary what becomes of this run; if the run fails, the program goes on after the block."""
    try:
        yield
    except Exception as error:
        _note_outcome(" ".join(str(error).split()) or type(error).__name__)
        if not in_sweep() or not _ends_at_failures():
            raise
        log.error("%s failed: %s", HydraConfig.get().runtime.output_dir, error)
    else:
        _note_outcome(FINISHED)


def _note_outcome(outcome: str) -> None:
    if in_sweep():
        hydra = HydraConfig.get()
        with atomic_file(_outcomes(hydra.sweep.dir) / Path(hydra.runtime.output_dir).name) as file:
            file.write_text(outcome)


def _ends_at_failures() -> bool:
    """Whether the sweeper ends at the first failure, as Hydra's own does; others, such as Optuna's, have to know of
    it."""
    return HydraConfig.get().runtime.choices["hydra/sweeper"] == "basic"


def require_no_replay(config: DictConfig) -> None:
    """Refuse a run of several processes in a sweep with Hydra's own launcher.

    Lightning starts the other processes with the same command line, and each would replay the whole sweep.

    Raises:
        InputError: this is such a run.
    """
    if not in_sweep() or HydraConfig.get().runtime.choices["hydra/launcher"] != "basic":
        return
    trainer = config.trainer
    for name, alone in (("strategy", (None, "auto")), ("devices", (1, "1")), ("num_nodes", (1, None))):
        require(
            trainer.get(name) in alone,
            f"trainer.{name}={trainer.get(name)}: not in a sweep with hydra/launcher=basic, where each process would "
            "replay the sweep; use trainer=default, or hydra/launcher=slurm or submitit_local",
        )


def join_processes_of_job() -> None:
    """Let Lightning find the GPUs and the processes of a job on this machine. Those of SLURM it finds by itself."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    os.environ.pop("SLURM_NTASKS", None)  # of an allocation that all jobs share
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get(VISIBLE, "")
    if not os.environ["CUDA_VISIBLE_DEVICES"]:
        del os.environ["CUDA_VISIBLE_DEVICES"]  # all of them
    if int(os.environ["SUBMITIT_LOCAL_NTASKS"]) > 1:
        from pytorch_lightning.utilities import rank_zero_only
        from submitit.helpers import TorchDistributedEnvironment

        rank = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True).rank
        os.environ["NODE_RANK"] = "0"
        rank_zero_only.rank = rank  # pyright: ignore[reportFunctionMemberAccess]


def print_sweep_summary() -> None:
    """Print what became of each run that this process's sweep was asked for; nothing if there was no sweep.

    Raises:
        SystemExit: with status 1, if a run failed, or is not finished and no process runs it.
    """
    if not HydraConfig.initialized() or not in_sweep():
        return
    folder = Path(HydraConfig.get().sweep.dir)
    outcomes = _outcomes(str(folder))
    if not outcomes.is_dir():
        return
    found = {path.name: path.read_text() for path in sorted(outcomes.iterdir()) if not path.name.startswith(".")}
    asked = json.loads(found.pop(ASKED)) if ASKED in found else list(found)
    table = Table("run", "", box=box.SIMPLE_HEAD)
    finished = running = 0
    for name in asked:
        run, outcome = RunFolder(folder / name), found.get(name)
        if outcome == FINISHED:
            finished += 1
            said = Text(_said(run))
        elif outcome is None and run.is_running:
            running += 1
            said = Text("running")
        else:
            said = Text(outcome or run.reason() or "did not end, or was not begun", style="red")
        table.add_row(Text(name), said)
    shutil.rmtree(outcomes)
    with contextlib.suppress(OSError):  # another command runs a part of the sweep
        outcomes.parent.rmdir()
    console = Console()
    console.print(Text(f"Sweep {folder}", style="table.title"), soft_wrap=True)
    console.print(table)
    console.print(f"{finished} of {len(asked)} runs finished.", highlight=False)
    if finished + running < len(asked):
        hint = f"To finish the others: the same command and {override('hydra.sweep.dir', folder)}"
        console.print(hint, soft_wrap=True, highlight=False, markup=False)
        sys.exit(1)


def _said(run: RunFolder) -> str:
    try:
        scores = run.scores()
    except InputError as error:
        return str(error)
    if not scores:
        return "finished"
    if "epochs" not in scores:
        return _score(scores)
    return f"{_score(scores)}, {scores['epochs']} {'epoch' if scores['epochs'] == 1 else 'epochs'}"


def _score(scores: dict[str, Any]) -> str:
    """The first score of ``scores.json`` that has a title, after the last step."""
    if not scores["by_step"]:  # no image was tested
        return "not tested"
    titled = ((name, heading) for name, heading in scores["headings"].items() if heading[0])
    name, (title, spec) = next(titled, (None, ("no score", "")))
    value = scores["by_step"][-1].get(name)
    return f"test {title} {'-' if value is None else format(value, spec)}"
