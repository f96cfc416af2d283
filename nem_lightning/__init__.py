"""Neural Expectation Maximization in PyTorch Lightning and Hydra.

The names below are imported when they are first used, so that ``import nem_lightning`` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nem_lightning.models.em import NeuralEM
    from nem_lightning.models.grouping import Grouping, GroupingModel
    from nem_lightning.models.likelihoods import Bernoulli, Gaussian
    from nem_lightning.models.losses import NeuralEMLoss
    from nem_lightning.models.m_steps import GatedMStep, GradientMStep, RecurrentMStep
    from nem_lightning.models.reconstruction_clustering import ReconstructionClustering
    from nem_lightning.models.slot_attention import SlotAttention
    from nem_lightning.models.tagger import Tagger
    from nem_lightning.predictions import group
    from nem_lightning.training.checkpoints import load

__version__ = "0.1.0"
__all__ = [
    "Bernoulli",
    "GatedMStep",
    "Gaussian",
    "GradientMStep",
    "Grouping",
    "GroupingModel",
    "NeuralEM",
    "NeuralEMLoss",
    "ReconstructionClustering",
    "RecurrentMStep",
    "SlotAttention",
    "Tagger",
    "group",
    "load",
]

_PLACES = {
    "NeuralEM": "models.em",
    "Grouping": "models.grouping",
    "GroupingModel": "models.grouping",
    "Bernoulli": "models.likelihoods",
    "Gaussian": "models.likelihoods",
    "NeuralEMLoss": "models.losses",
    "GatedMStep": "models.m_steps",
    "GradientMStep": "models.m_steps",
    "RecurrentMStep": "models.m_steps",
    "ReconstructionClustering": "models.reconstruction_clustering",
    "SlotAttention": "models.slot_attention",
    "Tagger": "models.tagger",
    "group": "predictions",
    "load": "training.checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
