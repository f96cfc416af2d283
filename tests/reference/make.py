"""Cuts the small traces in this folder from the full ones: ``python make.py FOLDER_OF_FULL_TRACES``.

Weights are exact in float32. Every 7th entry of means, responsibilities and gradients is kept, and every 97th entry of
gradients with respect to weights; these entries are rounded to float32.
"""

import sys
from pathlib import Path

import numpy as np

for name in ("rnn_em", "n_em"):
    full = np.load(Path(sys.argv[1]) / f"{name}_bernoulli.npz")
    small = {"image": full["image"].astype(np.uint8), "gamma0": full["gamma0"].astype(np.float32)}
    assert all(np.array_equal(small[key], full[key]) for key in small)
    for key in ("total_loss", "intra_loss", "inter_loss"):
        small[key] = full[key]
    for key in ("preds", "gammas", "hidden", "grad_gamma0"):
        small[key] = full[key].reshape(-1)[::7].astype(np.float32)
    for key in full:
        if key.startswith("var/"):
            small[key] = full[key].astype(np.float32)
            assert np.array_equal(small[key], full[key])
        elif key.startswith("grad/"):
            small[key] = full[key].reshape(-1)[::97].astype(np.float32)
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **small)
