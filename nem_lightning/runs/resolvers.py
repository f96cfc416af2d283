"""What the configs may call, as in ``${cuda_or_cpu:}``: importing this module registers it. It imports no PyTorch.

Hydra itself hands the registered resolvers on to the jobs of a sweep.
"""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from nem_lightning.errors import InputError
from nem_lightning.runs.sweeps import in_sweep, name_of_run, plain_overrides


def cuda_or_cpu() -> str:
    """``cuda`` if there is a CUDA GPU, else ``cpu``."""
    import torch  # here, so that --help need not wait for it

    return "cuda" if torch.cuda.is_available() else "cpu"


def if_binary(binary: bool, then: Any, otherwise: Any) -> Any:
    """The setting for binary pixels, or the one for real pixels, as in ``${if_binary:${pixels.binary},2e-2,2e-3}``."""
    return then if binary else otherwise


def folder_name(path: str) -> str:
    """The last part of a path."""
    return Path(path).name


def sweep_name() -> str | None:
    """The name of the sweep's folder; None outside a sweep."""
    return folder_name(HydraConfig.get().sweep.dir) if in_sweep() else None


def run_in_sweep(seed: int) -> str:
    """The name of the run's folder in that of its sweep."""
    hydra = HydraConfig.get()
    return name_of_run(
        plain_overrides(hydra.overrides.task), list(hydra.job.config.override_dirname.exclude_keys), seed
    )


def tasks_per_node(devices: int | str) -> int:
    """The number of processes of a job on each machine: one for each device.

    Raises:
        InputError: ``devices`` is no number, such as "auto".
    """
    try:
        return max(1, int(devices))
    except ValueError:
        raise InputError(f"trainer.devices={devices}: must be a number in a sweep of jobs of their own") from None


def gpus_per_node(trainer: str, devices: int | str) -> int | None:
    """The number of GPUs that a job asks for on each machine; None with ``trainer=cpu``."""
    return None if trainer == "cpu" else tasks_per_node(devices)


for resolver in (cuda_or_cpu, if_binary, folder_name, sweep_name, run_in_sweep, tasks_per_node, gpus_per_node):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
