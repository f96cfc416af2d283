"""A model, a module and data small enough to train in a second."""

import functools
from collections.abc import Mapping

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from nem_lightning.datamodules.base import FramesDataModule, TensorFrames
from nem_lightning.datamodules.shapes import generate
from nem_lightning.models.corruption import BitFlip
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.scores.base import Score
from nem_lightning.scores.collection import TestScores
from nem_lightning.scores.images import Confidence, ReconstructionError
from nem_lightning.scores.mutual_information import AdjustedMutualInformation
from nem_lightning.scores.rand_index import AdjustedRandIndex
from nem_lightning.training.module import GroupingModule

SHAPE = (1, 6, 5)


class TinyImages(FramesDataModule[TensorFrames]):
    """70 training, 30 validation and 30 test images of two stripes."""

    image_shape = SHAPE
    binary = True

    def __init__(self, batch_size: int = 16, seed: int = 0) -> None:
        super().__init__(batch_size, seed)

    def load(self, stage: str) -> TensorFrames:
        count = 70 if stage == "train" else 30
        generator = torch.Generator().manual_seed(len(stage))
        columns = torch.randint(0, 5, (count, 2), generator=generator)
        groups = torch.zeros(count, 1, 6, 5, dtype=torch.uint8)
        for k in range(2):
            groups[torch.arange(count), 0, :, columns[:, k]] = k + 1
        return TensorFrames((groups > 0).to(torch.uint8).unsqueeze(2), groups)


class TinySequences(FramesDataModule[TensorFrames]):
    """24 sequences in each stage, of two stripes that move one column a frame and re-enter at the other edge."""

    image_shape = SHAPE
    binary = True

    def __init__(self, num_frames: int = 4, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__(batch_size, seed)
        self.num_frames = num_frames

    def load(self, stage: str) -> TensorFrames:
        generator = torch.Generator().manual_seed(len(stage))
        columns = torch.randint(0, 5, (24, 2), generator=generator)
        groups = torch.zeros(24, self.num_frames, 6, 5, dtype=torch.uint8)
        for frame in range(self.num_frames):
            for k, direction in enumerate((1, -1)):
                groups[torch.arange(24), frame, :, (columns[:, k] + direction * frame) % 5] = k + 1
        return TensorFrames((groups > 0).to(torch.uint8).unsqueeze(2), groups)


def few_shapes(count: int, num_objects: int = 3) -> TensorFrames:
    """Give ``count`` images of Shapes."""
    images, groups = generate(count, 28, num_objects, np.random.default_rng(0))
    return TensorFrames(torch.from_numpy(images)[:, None, None], torch.from_numpy(groups)[:, None])


def tiny_model(shape=SHAPE, **arguments) -> NeuralEM:
    torch.manual_seed(0)
    loss = NeuralEMLoss(Bernoulli(), step_weights="all")
    sizes = {"num_components": 2, "num_steps": 3, **arguments}
    return NeuralEM(RecurrentMStep(shape, hidden_size=8), Bernoulli(), loss, BitFlip(0.1), **sizes)


def default_scores() -> dict[str, Score]:
    """Give the scores of ``conf/scores/default.yaml``."""
    return {
        "ami_max": AdjustedMutualInformation("max"),
        "ami_arithmetic": AdjustedMutualInformation("arithmetic"),
        "ari": AdjustedRandIndex(),
        "reconstruction_error": ReconstructionError(),
        "confidence": Confidence(),
    }


def tiny_module(
    lr: float = 1e-2,
    decay: bool = False,
    seed: int = 0,
    scores: Mapping[str, Score] | None = None,
    kind: type[GroupingModule] = GroupingModule,
    **of_model,
) -> GroupingModule:
    """A module around :func:`tiny_model`, with the default scores."""
    optimizer = functools.partial(torch.optim.Adam, lr=lr)
    scores = default_scores() if scores is None else scores
    return kind(tiny_model(**of_model), scores, optimizer, decay=decay, seed=seed)


def em_of(module: pl.LightningModule) -> NeuralEM:
    """The model of a module."""
    assert isinstance(module, GroupingModule) and isinstance(module.model, NeuralEM)
    return module.model


def m_step_of(em: NeuralEM) -> RecurrentMStep:
    """The M-step of RNN-EM."""
    assert isinstance(em.m_step, RecurrentMStep)
    return em.m_step


def output_layer(m_step: RecurrentMStep) -> nn.Linear:
    """The linear layer of a decoder."""
    assert isinstance(m_step.decoder, nn.Sequential)
    layer = m_step.decoder[0]
    assert isinstance(layer, nn.Linear)
    return layer


def gradient_of(weight: Tensor) -> Tensor:
    """Give the gradient of a weight, which must have one."""
    assert weight.grad is not None
    return weight.grad


def scores_of(module: GroupingModule) -> TestScores:
    """Give the scores of a module's test, which must have run."""
    assert module.test_scores is not None
    return module.test_scores


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
