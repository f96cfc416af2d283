"""Small files in MNIST's format."""

import gzip
import hashlib
from pathlib import Path

import numpy as np


def make_digits(folder: Path) -> dict[str, tuple[int, str, str]]:
    """Write random digits, and give the value that ``mnist.IMAGES`` must have for these files."""
    folder.mkdir(parents=True)
    rng, files = np.random.default_rng(0), {}
    for name, count in (("train-images-idx3-ubyte.gz", 600), ("t10k-images-idx3-ubyte.gz", 50)):
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        data = header + rng.integers(0, 256, (count, 28, 28), np.uint8).tobytes()
        (folder / name).write_bytes(gzip.compress(data))
        files[name] = (count, "", hashlib.sha256(data).hexdigest())
    return files
