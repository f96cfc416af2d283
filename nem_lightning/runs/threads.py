"""How PyTorch's threads wait for each other on a CPU."""

import os

SPIN_COUNT = "1000"
"""Turns that a thread waits before it sleeps (300,000 by default); docs/speed.md has the figures."""


def spin_less() -> None:
    """Let OpenMP's threads spin for a shorter time before they sleep, unless the user has set how they wait.

    Call this before PyTorch is imported. By default, threads spin so long that another process on one of the cores
    makes training many times slower.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
