"""The time of a training step, by kind of operation."""

import os
import statistics
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import steps, timing
from benchmarks.steps import Case

KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "random numbers": ("aten::normal_", "aten::uniform_", "aten::bernoulli_"),
    "Adam": ("aten::_fused_adam_",),
}


def of_a_training_step(case: Case, device: torch.device, rounds: int) -> dict[str, float]:
    """Give the milliseconds of a training step by kind of operation; on a CPU only.

    The kinds are matmuls, random numbers, Adam, and all other operations (elementwise, sums, layer normalisation,
    copies). ``between operations`` is the time of a step without the profiler, less the sum of the kinds. This rest is
    too small, because the profiler itself takes time.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs its start and stop
    step = steps.functions(case, device, training=True, compiled=False)["ours"]
    whole = statistics.median(timing.in_turns({"ours": step}, rounds, device)["ours"])
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(rounds):
            step()
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    found_ms = Counter(dict.fromkeys([*KINDS, "other operations"], 0.0))
    for event in found.key_averages():
        if event.key.startswith("aten::"):
            found_ms[kinds.get(event.key, "other operations")] += event.self_cpu_time_total / 1e3 / rounds
    return {**found_ms, "between operations": 1e3 * whole - sum(found_ms.values())}
