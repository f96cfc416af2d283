"""Does the slow work that all commands share once, in the process from which they are forked."""

import gc
import io

import numpy as np
import read_once  # noqa: F401 (each process has its own memory of what Hydra has read)
import wandb.sdk.launch.inputs.internal  # noqa: F401 (W&B imports this when a run begins, in two seconds)
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from submitit.core.core import Job

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from nem_lightning.mosaics import Mosaic

Plugins.instance()  # looks for Hydra's plugins, and imports them
with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):  # builds the tables of Hydra's parsers
    compose("train", overrides=["experiment=smoke", "+a={b: [1, 2.0, 'c d']}", "seed=1"], return_hydra_config=True)
Job._results_timeout_s = 2  # submitit waits 15 seconds for the results of a job that was killed
mosaic = Mosaic(1, 1, (2, 2), caption="fonts")
mosaic.show(0, 0, np.zeros((2, 2, 3)))
mosaic.figure().savefig(io.BytesIO())
gc.freeze()  # the garbage collector then skips all imported objects
