"""Fair times on a busy machine: all functions take turns in one process."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Times = dict[str, list[float]]


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> Times:
    """Give the seconds of each call; a round calls every function once."""
    times: Times = {name: [] for name in functions}
    for index in range(-2, rounds):
        for name, function in functions.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if index >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: Times, count: int, reference: str) -> dict[str, dict[str, float]]:
    """Give each function's median of items per second, and its speed relative to the reference.

    A call processes ``count`` items. The relative speed is the median of the ratios within a round.
    """
    return {
        name: {
            "per_second": count / statistics.median(seconds),
            f"of_{reference}": statistics.median(b / a for a, b in zip(seconds, times[reference], strict=True)),
        }
        for name, seconds in times.items()
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
