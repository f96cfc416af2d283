"""A module and data small enough to train in a second."""

import functools

import numpy as np
import pytorch_lightning as pl
import torch

from nem_lightning.datamodules.base import ImagesDataModule, TensorImages
from nem_lightning.datamodules.shapes import generate
from nem_lightning.models.corruption import BitFlip
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.training.module import NeuralEMModule

SHAPE = (1, 6, 5)


class TinyImages(ImagesDataModule):
    """70 training, 30 validation and 30 test images of two stripes."""

    image_shape = SHAPE
    binary = True

    def __init__(self, batch_size: int = 16, seed: int = 0) -> None:
        super().__init__(batch_size, seed)

    def load(self, stage: str) -> TensorImages:
        count = 70 if stage == "train" else 30
        generator = torch.Generator().manual_seed(len(stage))
        columns = torch.randint(0, 5, (count, 2), generator=generator)
        groups = torch.zeros(count, 6, 5, dtype=torch.uint8)
        for k in range(2):
            groups[torch.arange(count), :, columns[:, k]] = k + 1
        return TensorImages((groups > 0).to(torch.uint8).unsqueeze(1), groups)


def few_shapes(count: int) -> TensorImages:
    """So many images of Shapes."""
    images, groups = generate(count, 28, 3, np.random.default_rng(0))
    return TensorImages(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(groups))


def tiny_module(lr: float = 1e-2, **arguments) -> NeuralEMModule:
    torch.manual_seed(0)
    em = NeuralEM(RecurrentMStep(SHAPE, hidden_size=8), Bernoulli())
    loss = NeuralEMLoss(Bernoulli(), step_weights="all")
    optimizer = functools.partial(torch.optim.Adam, lr=lr)
    return NeuralEMModule(em, loss, optimizer, BitFlip(0.1), **{"num_steps": 3, "num_components": 2, **arguments})


def tiny_trainer(folder, **arguments) -> pl.Trainer:
    defaults = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "max_epochs": 1,
    }
    return pl.Trainer(**{**defaults, **arguments})
