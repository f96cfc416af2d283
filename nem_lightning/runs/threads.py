"""How PyTorch's threads wait for each other on a CPU."""

import os

SPIN_COUNT = "1000"
"""Keeps nine tenths of the speed alone, and twice the speed beside a busy process; see ``benchmarks/threads.py``."""


def spin_less() -> None:
    """Let OpenMP's threads spin for a shorter time before they sleep, unless the user has set how they wait.

    Call this before PyTorch is imported. By default, threads spin so long that another process on one of the cores
    makes training many times slower.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
