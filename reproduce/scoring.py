"""Scores of whatever groups pixels, image by image."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nem_lightning.datamodules.base import TensorImages
from nem_lightning.models.em import Iterate
from nem_lightning.scores.mutual_information import NORMALIZERS, AdjustedMutualInformation, AdjustedRandIndex
from nem_lightning.training.module import NeuralEMModule

BATCH = 64
"""Images in a batch: that of ``evaluate.py``, whose draws of the first responsibilities are by batch."""
DRAWS = 0
"""The seed of the first responsibilities: that of ``evaluate.py``, whatever seed a run was trained with."""
SCORES = ("ami_max", "ami_arithmetic", "ari", "reconstruction_error")
SUBSETS = ("all", "overlap", "no_overlap")


class Grouping(NamedTuple):
    """What is scored."""

    labels: Tensor
    """(B, H, W), integers from 0."""
    reconstruction: Tensor | None = None
    """(B, C, H, W); None for what only groups."""


Grouper = Callable[[Tensor, int], Iterable[Grouping]]
"""Called with images (B, C, H, W) and the number of the batch; gives a grouping a step, or just one."""


class ImageScores(NamedTuple):
    """Of S groupings (steps) of N images."""

    values: dict[str, np.ndarray]
    """Each of ``SCORES``, (S, N); NaN where an image has none."""
    overlap: np.ndarray
    """Whether objects overlap in the image: it has a foreground pixel of group 0, (N,) boolean."""


def device() -> torch.device:
    """A GPU with CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def first(images: TensorImages, count: int | None) -> TensorImages:
    """The first so many images; all of them where ``count`` is None."""
    return TensorImages(images.images[:count], images.groups[:count], images.scale)


def batches(images: TensorImages) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number and content of each batch, in the order and of the size that ``evaluate.py`` has."""
    for index, start in enumerate(range(0, len(images), BATCH)):
        yield index, images.__getitems__(list(range(start, min(start + BATCH, len(images)))))


def unroll(module: NeuralEMModule, image: Tensor, index: int, steps: range) -> list[Iterate]:
    """The iterates after some steps, from the first responsibilities that ``evaluate.py`` draws on a CPU.

    Of several starts, each is from the one of lowest energy after that step, as if it were the last.

    Args:
        module: with ``em`` where ``image`` is; the module itself is on the CPU, where the draws are the same on
            every machine.
        image: (B, C, H, W).
        index: of the batch.
        steps: which, the first step being 1.
    """
    em, generator = module.em, module.generator("test", index)
    best: dict[int, tuple[Tensor, Iterate]] = {}  # by step, and how high its energy is
    for _ in range(module.num_starts):
        start = em.start(image.to(module.device), module.num_components, generator)
        iterate = Iterate(*(value.to(image.device) for value in start))
        for step in range(1, steps.stop):
            iterate = em.step(iterate, image, image)
            if step in steps:
                energy = em.energy(image, iterate)
                lowest, kept = best.get(step, (energy, iterate))
                best[step] = torch.minimum(energy, lowest), iterate.where(energy < lowest, kept)
    return [iterate for _, iterate in best.values()]


def trained(module: NeuralEMModule, num_steps: int | None = None, every_step: bool = False) -> Grouper:
    """A trained model as :func:`score` takes it.

    Args:
        module: the model; its K and, unless told otherwise, its T. It is moved where :func:`device` says.
        num_steps: T.
        every_step: whether every step is scored, or the last alone.
    """
    num_steps = num_steps or module.num_steps
    steps = range(1 if every_step else num_steps, num_steps + 1)
    module.seed = DRAWS
    module.em.to(device())

    def group(image: Tensor, index: int) -> Iterator[Grouping]:
        for iterate in unroll(module, image, index, steps):
            yield Grouping(iterate.labels, (iterate.responsibilities * iterate.mean).sum(1))

    return group


@torch.no_grad()
def score(grouper: Grouper, images: TensorImages) -> ImageScores:
    """Score every image. Labels count on pixels of exactly one object; the reconstruction on all pixels.

    Args:
        grouper: a trained model or a baseline.
        images: and their true groups.
    """
    overlap, values = [], {name: [] for name in SCORES}
    for index, batch in batches(images):
        image, groups = batch["image"].to(device()), batch["groups"].to(device())
        overlap.append(((image[:, 0] > 0) & (groups == 0)).flatten(1).any(1).cpu().numpy())
        by_step = [of_grouping(grouping, image, groups) for grouping in grouper(image, index)]
        for name in SCORES:
            values[name].append(torch.stack([step[name] for step in by_step]).cpu().numpy())
    return ImageScores({name: np.concatenate(found, axis=1) for name, found in values.items()}, np.concatenate(overlap))


def of_grouping(grouping: Grouping, image: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """Each of ``SCORES`` by image, (B,) float64; NaN where there is none."""
    labels = grouping.labels.to(groups.device)
    amis = AdjustedMutualInformation().scores(labels, groups)  # both normalisers at once, (2, B)
    found = dict(zip((f"ami_{name}" for name in NORMALIZERS), amis, strict=True))
    found["ari"] = AdjustedRandIndex().scores(labels, groups)[0]
    if grouping.reconstruction is None:
        found["reconstruction_error"] = torch.full_like(found["ari"], torch.nan)
    else:
        found["reconstruction_error"] = (image - grouping.reconstruction).double().square().flatten(1).mean(1)
    return found


def means(scores: ImageScores, step: int = -1) -> dict[str, dict[str, float | int | None]]:
    """Means over the images of each of ``SUBSETS``, after one step: plain numbers, None where there is none.

    ``images`` is how many images there are, ``scored`` how many of them have a pixel that is scored.
    """
    chosen = {"all": np.ones_like(scores.overlap), "overlap": scores.overlap, "no_overlap": ~scores.overlap}
    return {name: _means(scores, step, chosen[name]) for name in SUBSETS}


def _means(scores: ImageScores, step: int, chosen: np.ndarray) -> dict[str, float | int | None]:
    of_subset = {name: values[step][chosen] for name, values in scores.values.items()}
    found = {name: values[~np.isnan(values)] for name, values in of_subset.items()}
    counts = {"images": int(chosen.sum()), "scored": len(found["ari"])}
    return counts | {name: float(values.mean()) if len(values) else None for name, values in found.items()}
