"""The speed of a training step beside another process.

A CPU build of PyTorch for Linux comes with GNU OpenMP, whose threads spin while they wait for each other. If another
process takes a core, the threads spin while they wait for a thread that cannot run. ``GOMP_SPINCOUNT`` is the number
of turns after which a waiting thread sleeps. GNU OpenMP reads this variable when PyTorch is imported, so each setting
has its own process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch  # before our modules, which may set variables that PyTorch reads

from benchmarks import steps
from benchmarks.steps import Case
from nem_lightning.runs.threads import SPIN_COUNT

ROOT = Path(__file__).parent.parent
SETTING = {"GOMP_SPINCOUNT": SPIN_COUNT}
OF_USERS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY")


def beside_a_busy_process(
    case: Case, rounds: int, seconds: float, setting: Mapping[str, str] = SETTING
) -> dict[str, dict[str, float]]:
    """Give the examples per second of our training step, ``alone`` and beside a ``busy`` process that never rests.

    Both are measured with PyTorch's ``default`` and with the setting ``set``; the numbers are medians over rounds. In a
    round, each case takes ``seconds``.
    """
    found = {name: {"alone": [], "busy": []} for name in ("default", "set")}
    command = [sys.executable, "-m", "benchmarks.threads", json.dumps(asdict(case)), str(torch.get_num_threads())]
    plain = {name: value for name, value in os.environ.items() if name not in OF_USERS}
    with ExitStack() as stack:
        ours = {
            name: stack.enter_context(_running(command, environment))
            for name, environment in {"default": plain, "set": {**plain, **setting}}.items()
        }
        for process in ours.values():
            _line_of(process)  # waits until the process is ready
        for _ in range(rounds):
            for name, process in ours.items():
                found[name]["alone"].append(_per_second(process, seconds))
                with _running([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], plain) as busy:
                    _line_of(busy)
                    found[name]["busy"].append(_per_second(process, seconds))
    return {name: {where: statistics.median(times) for where, times in of.items()} for name, of in found.items()}


@contextmanager
def _running(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def _per_second(process: subprocess.Popen[str], seconds: float) -> float:
    print(seconds, file=process.stdin, flush=True)
    return float(_line_of(process))


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _answer(case: Case, threads: int) -> None:
    """Read a number of seconds from each input line, train for that time, and print the examples per second."""
    torch.set_num_threads(threads)
    step = steps.functions(case, torch.device("cpu"), training=True, compiled=False)["ours"]
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < float(line):
            step()
            count += 1
        print(case.batch * count / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    _answer(Case(**json.loads(sys.argv[1])), int(sys.argv[2]))
