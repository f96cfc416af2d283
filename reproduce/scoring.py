"""The scores of grouping models, image by image."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from nem_lightning.datamodules.base import Batch, TensorFrames
from nem_lightning.models.grouping import frame_pair, groups_of_step
from nem_lightning.models.m_steps import evaluating
from nem_lightning.scores.base import Score
from nem_lightning.training.module import GroupingModule
from reproduce.rows import ROWS, settings

BATCH = 64
"""Images in a batch, as in ``evaluate.py``, which draws random numbers batch by batch."""


def scores_by_image() -> dict[str, Score]:
    """Give the scores of ``conf/scores`` that score images one by one, by name."""
    chosen: dict[str, Score] = instantiate(settings(ROWS["rnn_em"])["scores"])
    return {name: score for name, score in chosen.items() if hasattr(score, "by_image")}


def batches(data: TensorFrames) -> Iterator[Batch]:
    """Give batches in the order and size of ``evaluate.py``."""
    for start in range(0, len(data), BATCH):
        yield data.__getitems__(list(range(start, min(start + BATCH, len(data)))))


@torch.no_grad()
def by_image(
    module: GroupingModule,
    data: TensorFrames,
    scores: Mapping[str, Score],
    steps: Collection[int] | None = None,
    num_components: int | None = None,
) -> dict[int, dict[str, Tensor]]:
    """Score each image after some steps, with the random numbers that ``evaluate.py`` draws.

    A model with several starts chooses among them by its last step, so this model is run once for each number of
    steps. A model with one start is run once, for the largest number.

    Args:
        module: its seed decides the draws. The module is on the CPU, because CPU draws are the same on every machine.
        data: images and their true groups.
        scores: by name, with a method ``by_image``.
        steps: the steps after which to score; only the last by default.
        num_components: K; the model's own by default.

    Returns:
        By step and name, (N,) float64, NaN for an image without the score.
    """
    steps = sorted(steps or [module.model.num_steps])
    runs = [[step] for step in steps] if module.model.num_starts > 1 else [steps]
    found: dict[int, list[dict[str, Tensor]]] = {step: [] for step in steps}
    with evaluating(module.model):
        for run in runs:
            for index, batch in enumerate(batches(data)):
                generator = module.generator("test", index)
                groupings = module.model.groupings(
                    batch["frames"], num_components=num_components, num_steps=run[-1], generator=generator
                )
                for step, grouping in enumerate(groupings, start=1):
                    if step in run:
                        known = {
                            "labels": grouping.labels,
                            "reconstruction": grouping.reconstruction,
                            "target": frame_pair(batch["frames"], step)[1],
                            "groups": groups_of_step(batch["groups"], step),
                        }
                        found[step].append({name: _of_batch(known, score) for name, score in scores.items()})
    return {step: {name: torch.cat([part[name] for part in parts]) for name in scores} for step, parts in found.items()}


def _of_batch(known: Mapping[str, Tensor | None], score: Any) -> Tensor:
    return score.by_image(**{name: known[name] for name in inspect.signature(score.by_image).parameters})


def overlap(data: TensorFrames) -> Tensor:
    """Say in which images objects overlap, (N,) boolean: in those with a bright pixel of group 0."""
    return ((data.frames[:, 0] > 0).any(1) & (data.groups[:, 0] == 0)).flatten(1).any(1)


def means(values: Mapping[str, Tensor], data: TensorFrames) -> dict[str, dict[str, float | int | None]]:
    """Give the means over all images, over those with overlap, and over those without: plain numbers.

    ``images`` counts the images, ``scored`` those with a scored pixel; a mean over no image is None.
    """
    has_overlap = overlap(data)
    subsets = {"all": torch.ones_like(has_overlap), "overlap": has_overlap, "no_overlap": ~has_overlap}
    scored = (data.groups > 0).flatten(1).any(1)
    return {
        subset: {"images": int(chosen.sum()), "scored": int((chosen & scored).sum())}
        | {name: _mean(of[chosen]) for name, of in values.items()}
        for subset, chosen in subsets.items()
    }


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else None
