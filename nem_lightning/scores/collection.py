"""All scores of one EM step, over a data set."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from nem_lightning.errors import require
from nem_lightning.headings import Heading
from nem_lightning.models.grouping import Grouping, GroupingModel
from nem_lightning.scores.base import Mean, Score


@dataclass(frozen=True)
class TestScores:
    """The results of a test."""

    __test__ = False  # pytest must not collect it

    headings: dict[str, Heading]
    """The heading of each score, by name."""
    by_step: list[dict[str, float]]
    """The scores of each step, by name."""
    num_images: int
    """How many images were tested."""
    unscored_images: int
    """How many of them have no scored pixel."""
    num_frames: int = 1
    """F of the last batch; 1 for still images."""

    @property
    def mean_over_steps(self) -> dict[str, float]:
        """The mean of each score over all steps."""
        return {name: sum(step[name] for step in self.by_step) / len(self.by_step) for name in self.headings}


class _Images(Score):
    """Counts images, and images without a scored pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")
        self.counts: Tensor

    def update(self, groups: Tensor) -> None:
        unscored = (groups <= 0).flatten(1).all(1).sum()
        self.counts += torch.stack([unscored.new_tensor(len(groups)), unscored])

    def compute(self) -> Tensor:
        return self.counts


class ScoreSet(nn.Module):
    """The scores of one step, and the numbers that a model reports: means over images, exact over processes.

    Args:
        scores: the scores, by name.
        model: its numbers are added after the scores.

    Raises:
        InputError: a score has the name of a number of the model.
    """

    def __init__(self, scores: Mapping[str, Score], model: GroupingModel) -> None:
        super().__init__()
        for name in scores:
            require(
                name not in model.headings, f"scores.{name}: is a number that {type(model).__name__} reports itself"
            )
        own = {name: copy.deepcopy(score) for name, score in scores.items()}
        self.headings = {name: score.heading for name, score in own.items()} | dict(model.headings)
        self.scores = MetricCollection(dict(own), compute_groups=_sharing(own)) if own else None
        self.numbers = nn.ModuleDict({name: Mean() for name in model.headings})
        self.images = _Images()

    @torch.no_grad()
    def update(self, model: GroupingModel, target: Tensor, groups: Tensor, grouping: Grouping) -> None:
        """Add a batch.

        Args:
            model: reports its numbers.
            target: (B, C, H, W), the clean frame that the grouping explains.
            groups: (B, H, W), of that frame.
            grouping: after the step.
        """
        if self.scores is not None:
            self.scores.update(
                labels=grouping.labels,
                responsibilities=grouping.responsibilities,
                reconstruction=grouping.reconstruction,
                target=target,
                groups=groups,
            )
        for name, value in model.report(target, grouping).items():
            require(name in self.numbers, f"{type(model).__name__}.headings: has no heading for {name!r}")
            self._number(name).update(value, len(target))
        self.images.update(groups)

    def compute(self) -> dict[str, Tensor]:
        """Give each score by its name, a scalar; NaN if no image had one."""
        found = {} if self.scores is None else self.scores.compute()
        found |= {name: self._number(name).compute() for name in self.numbers}
        return {name: found[name] for name in self.headings}

    def reset(self) -> None:
        """Start over."""
        for metric in (self.scores, *map(self._number, self.numbers), self.images):
            if metric is not None:
                metric.reset()

    def _number(self, name: str) -> Mean:
        return cast(Mean, self.numbers[name])


def _sharing(scores: Mapping[str, Score]) -> list[list[str]]:
    """Group the names of scores that add up the same counts."""
    groups: dict[object, list[str]] = {}
    for name, score in scores.items():
        groups.setdefault(type(score) if score.shares_counts else name, []).append(name)
    return list(groups.values())
