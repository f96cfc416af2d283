"""Imported by the process that commands are forked from: does once what takes long and is the same in all of them."""

import io

import numpy as np
from hydra.core.plugins import Plugins

from nem_lightning.figures import Mosaic

Plugins.instance()  # looks for Hydra's plugins, and imports them
mosaic = Mosaic(1, 1, (2, 2), caption="fonts")
mosaic.show(0, 0, np.zeros((2, 2, 3)))
mosaic.figure().savefig(io.BytesIO())
