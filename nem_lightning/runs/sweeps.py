"""Sweeps: how their runs are named, that one failing run does not end them, and how they went."""

import contextlib
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

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
from nem_lightning.runs.folder import RunFolder

log = logging.getLogger(__name__)

VISIBLE = "NEM_VISIBLE_DEVICES"
"""What CUDA_VISIBLE_DEVICES was where a sweep was started: submitit hides the GPUs from processes on this machine."""

_SWEEPS: list[Path] = []  # that this process started


def _sweep_name() -> str | None:
    return Path(HydraConfig.get().sweep.dir).name if in_sweep() else None


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
        The name; where it does not say all (a name cut, a number rounded), it ends in a hash of the whole.
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


def _name_of_this_run(seed: int) -> str:
    hydra = HydraConfig.get()
    return name_of_run(list(hydra.overrides.task), list(hydra.job.config.override_dirname.exclude_keys), seed)


def _tasks_per_node(devices: object) -> int:
    """Raises InputError for "auto" and the like."""
    try:
        return max(1, int(devices))
    except ValueError:
        raise InputError(f"trainer.devices={devices}: must be a number in a sweep of jobs of their own") from None


def _gpus_per_node(trainer: str, devices: object) -> int | None:
    return None if trainer == "cpu" else _tasks_per_node(devices)


# What the configs may call, as in ${sweep_name:}
OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True)
OmegaConf.register_new_resolver("run_in_sweep", _name_of_this_run, replace=True)
OmegaConf.register_new_resolver("tasks_per_node", _tasks_per_node, replace=True)
OmegaConf.register_new_resolver("gpus_per_node", _gpus_per_node, replace=True)


class PrepareSweep(Callback):
    """A Hydra callback: tells the runs of a sweep which settings are the same in all of them, and which GPUs there are;
    notes the sweep for :func:`say_how_it_went`, and lets it outlive jobs that are killed."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        same = [str(override.key_or_group) for override in overrides if not override.is_sweep_override()]
        with read_write(config.hydra), open_dict(config.hydra):
            keys = ",".join(f"'{key}'" for key in same)
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
        _SWEEPS.append(Path(config.hydra.sweep.dir))
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            os.environ[VISIBLE] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            _outlive_killed_jobs(quietly=config.hydra.runtime.choices["hydra/sweeper"] == "basic")


def _outlive_killed_jobs(quietly: bool) -> None:
    """Let the process that submitted a sweep's jobs go on where one was killed and left no result.

    Args:
        quietly: without telling the sweeper, as Hydra's own would end there.
    """
    from submitit.core.core import Job
    from submitit.core.utils import UncompletedJobError

    whole = Job.results

    def results(job: Job) -> list[JobReturn]:
        try:
            return whole(job)
        except UncompletedJobError as error:
            log.error("job %s was killed; its output is in %s", job.job_id, job.paths.folder)
            if quietly:
                return [JobReturn(status=JobStatus.COMPLETED, _return_value=float("nan"))]
            return [JobReturn(status=JobStatus.FAILED, _return_value=error)]

    Job.results = results


def require_no_replay(config: DictConfig) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` for a sweep whose processes would each replay it.

    With Hydra's own launcher, Lightning starts the other processes of a DDP run as the same command line,
    sweep and all.
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
    """Let Lightning find the GPUs and the processes of a job on this machine (SLURM's it finds by itself)."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    os.environ.pop("SLURM_NTASKS", None)  # of an allocation that all jobs are in
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get(VISIBLE, "")
    if not os.environ["CUDA_VISIBLE_DEVICES"]:
        del os.environ["CUDA_VISIBLE_DEVICES"]  # all of them
    if int(os.environ["SUBMITIT_LOCAL_NTASKS"]) > 1:
        from pytorch_lightning.utilities import rank_zero_only
        from submitit.helpers import TorchDistributedEnvironment

        rank = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True).rank
        os.environ["NODE_RANK"] = "0"
        rank_zero_only.rank = rank


@contextlib.contextmanager
def outliving_its_runs() -> Iterator[None]:
    """Let a sweep go on when this run fails: the failure is logged, and the block is left.

    Hydra's own sweeper would end at the first batch of runs with a failure. Others, as Optuna's, know what to do.
    """
    try:
        yield
    except Exception as error:
        if not in_sweep() or HydraConfig.get().runtime.choices["hydra/sweeper"] != "basic":
            raise
        log.error("%s failed: %s", HydraConfig.get().runtime.output_dir, error)


def say_how_it_went() -> None:
    """Print what became of each run of this process's sweep, if it was one.

    Raises:
        SystemExit: with status 1, where a run failed, or is not finished and no process runs it.
    """
    for folder in _SWEEPS:
        runs = [RunFolder(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        table = Table("run", "", title=f"Sweep {folder}", title_justify="left", box=box.SIMPLE_HEAD)
        finished = running = 0
        for run in runs:
            if scores := run.scores():
                finished += 1
                steps = scores["by_step"]  # none, where no image was tested
                test = f"test AMI (max) {steps[-1]['ami_max']:.4f}" if steps else "not tested"
                said = f"{test}, {scores['epochs']} epochs"
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
