"""Choose K for each image, by the energy that also chooses among starts.

Shapes: B images, K components, C channels, H by W pixels.
"""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nem_lightning.models.grouping import frame_pair

if TYPE_CHECKING:
    from nem_lightning.models.em import Iterate, NeuralEM

ALLOWANCE = 6.0
"""Nats that a component may cost. A component that explains nothing is never quite black: on Shapes, a spare one costs
about 10 nats. Found on 64 images each of 1 to 5 shapes, which are in no data set."""
EMPTY = -30.0
"""The logit of a component that is not used in an image."""


def unroll_choosing(
    em: "NeuralEM",
    frames: Tensor,
    most: int,
    num_steps: int,
    num_starts: int,
    generator: torch.Generator | None,
) -> Iterator["Iterate"]:
    """Yield the iterates after steps 1 to T, with the best number of components for each image.

    For each K from 1 to ``most``, the best start is found. Of these, an image keeps the one with the lowest

        energy  -  ALLOWANCE K

    after the last step. (The energy is :func:`nem_lightning.models.starts.energy`.) Components that are not used in an
    image have no responsibilities, and show the prior: black, if pixels are binary.

    Args:
        em: the model.
        frames: (B, F, C, H, W).
        most: the largest K.
        num_steps: T.
        num_starts: for each K.
        generator: draws all random numbers.

    Yields:
        Iterates of ``most`` components.
    """
    last = frame_pair(frames, num_steps)[1]
    starts = [em.best_start(frames, k, num_steps, num_starts, generator) for k in range(1, most + 1)]
    costs = []
    with torch.no_grad():
        for k, start in enumerate(starts, start=1):
            end = deque(em.steps(start, frames, frames, num_steps), maxlen=1).pop()
            costs.append(em.energy(last, end) - ALLOWANCE * k)
    chosen = torch.stack(costs, 1).argmin(1)  # K - 1, (B,)
    for of_step in zip(*(em.steps(start, frames, frames, num_steps) for start in starts), strict=True):
        found = _padded(em, of_step[0], most)
        for index, iterate in enumerate(of_step[1:], start=1):
            found = _padded(em, iterate, most).where(chosen == index, found)
        yield found


def _padded(em: "NeuralEM", iterate: "Iterate", most: int) -> "Iterate":
    """Add components without responsibilities, up to so many."""
    missing = most - iterate.state.shape[1]
    params = _with(iterate.params, missing, EMPTY if em.likelihood.binary else em.loss.prior)
    return type(iterate)(
        responsibilities=_with(iterate.responsibilities, missing, 0.0),
        mean=em.likelihood.mean(params),
        state=_with(iterate.state, missing, 0.0),
        params=params,
    )


def _with(values: Tensor, missing: int, value: float) -> Tensor:
    return torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), value)], 1)
