"""The choice of K for each image."""

import pytest
import torch
from conftest import ROOT
from tiny import few_shapes

from nem_lightning import load
from nem_lightning.errors import InputError
from nem_lightning.models.classical import Chance
from nem_lightning.models.em import Iterate, NeuralEM
from nem_lightning.models.num_components import ALLOWANCE

BEST = ROOT / "results" / "checkpoints" / "rnn_em_seed0.ckpt"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def best() -> NeuralEM:
    em = load(BEST, num_components="auto", num_steps=5, num_starts=4)
    assert isinstance(em, NeuralEM) and em.choose_up_to == 6
    return em


@torch.no_grad()
def test_each_image_keeps_the_number_of_lowest_energy():
    em, frames = best(), few_shapes(12).frames.float()
    found = em(frames, generator=seeded())
    generator, ends, costs = seeded(), [], []
    for k in range(1, 7):  # in the order of the model's draws
        start = em.best_start(frames, k, 5, 4, generator)
        *_, end = em.steps(start, frames, frames, 5)
        ends.append(end)
        costs.append(em.energy(frames[:, 0], end) - ALLOWANCE * k)
    chosen = torch.stack(costs).argmin(0)
    assert len(found) == 5 and len(chosen.unique()) > 1
    for index, k in enumerate(chosen.tolist()):
        gamma = found[-1].responsibilities[index]
        torch.testing.assert_close(gamma[: k + 1], ends[k].responsibilities[index])
        assert not gamma[k + 1 :].any()


@torch.no_grad()
def test_it_finds_how_many_shapes_there_are():
    em, right = best(), []
    for count in (1, 2, 3):
        data = few_shapes(40, num_objects=count)
        *_, last = em(data.frames.float(), generator=seeded())
        used = last.responsibilities.flatten(2).amax(2) > 0
        right.append((used.sum(1) == count).float().mean().item())
    assert right[0] == 1 and right[1] > 0.85 and right[2] > 0.75


@torch.no_grad()
def test_spare_components_are_black_and_cost_nothing():
    em, data = best(), few_shapes(6)
    *_, last = em(data.frames.float(), generator=seeded())
    assert isinstance(last, Iterate)
    numbers = em.report(data.frames[:, 0].float(), last)
    assert all(value.isfinite() for value in numbers.values())
    empty = last.responsibilities.flatten(2).amax(2) == 0
    assert empty.any() and last.mean[empty].max() < 1e-6


def test_a_given_number_wins_and_others_cannot_choose():
    em, frames = best(), few_shapes(2).frames.float()
    assert em(frames, num_components=3, generator=seeded())[-1].responsibilities.shape[1] == 3
    chance = Chance((1, 28, 28), True)
    chance.choose_up_to = 4
    with pytest.raises(InputError, match="num_components=auto: Chance cannot choose; give a number"):
        chance(frames)
