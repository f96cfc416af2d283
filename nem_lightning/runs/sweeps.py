"""Sweeps: the names of their runs, how a sweep goes on after a run that failed, and the summary at the end."""

import contextlib
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nem_lightning.errors import require
from nem_lightning.runs.folder import RunFolder

log = logging.getLogger(__name__)

VISIBLE = "NEM_VISIBLE_DEVICES"
"""CUDA_VISIBLE_DEVICES of the process that starts a sweep: submitit hides the GPUs from jobs on the same machine."""


def in_sweep() -> bool:
    """Whether this is a run of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def name_of_run(overrides: list[str], not_swept: list[str], seed: int, longest: int = 100) -> str:
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
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
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
    """A Hydra callback that tells the runs of a sweep which settings are the same in all of them, and which GPUs there
    are."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        same = [str(override.key_or_group) for override in overrides if not override.is_sweep_override()]
        with read_write(config.hydra), open_dict(config.hydra):
            keys = ",".join(f"'{key}'" for key in same)
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            os.environ[VISIBLE] = os.environ.get("CUDA_VISIBLE_DEVICES", "")


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
    """Let a sweep go on if this run fails: the failure is logged, and the program goes on after the block."""
    try:
        yield
    except Exception as error:
        if not in_sweep() or not _ends_at_failures():
            raise
        log.error("%s failed: %s", HydraConfig.get().runtime.output_dir, error)


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
    """Print what became of each run of the sweep that this process started; nothing if it started none.

    Raises:
        SystemExit: with status 1, if a run failed, or is not finished and no process runs it.
    """
    if not HydraConfig.initialized() or not in_sweep():
        return
    folder = Path(HydraConfig.get().sweep.dir)
    if not folder.is_dir():
        return
    runs = [RunFolder(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    table = Table("run", "", title=f"Sweep {folder}", title_justify="left", box=box.SIMPLE_HEAD)
    finished = running = 0
    for run in runs:
        if scores := run.scores():
            finished += 1
            said = f"{_score(scores)}, {scores['epochs']} epochs"
        elif run.is_running:
            running += 1
            said = "running"
        else:
            said = Text(run.reason() or "not finished", style="red")
        table.add_row(run.path.name, said)
    console = Console()
    console.print(table)
    console.print(f"{finished} of {len(runs)} runs finished.", highlight=False)
    if finished + running < len(runs):
        console.print(
            f"To finish the others: the same command and hydra.sweep.dir={folder}", soft_wrap=True, highlight=False
        )
        sys.exit(1)


def _score(scores: dict[str, Any]) -> str:
    """The first score of ``scores.json`` that has a title, after the last step."""
    if not scores["by_step"]:  # no image was tested
        return "not tested"
    name, (title, spec) = next((name, heading) for name, heading in scores["headings"].items() if heading[0])
    return f"test {title} {format(scores['by_step'][-1][name], spec)}"
