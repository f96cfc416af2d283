"""Frames: step t sees frame t and explains frame t + 1; a still image is a sequence in which nothing moves."""

import dataclasses

import pytest
import torch
from small_models import sequences, small_model
from tiny import gradient_of

from nem_lightning.errors import InputError
from nem_lightning.models.em import Iterate
from nem_lightning.models.grouping import Grouping, frame_pair, groups_of_step
from nem_lightning.models.losses import NeuralEMLoss

both_kinds = pytest.mark.parametrize("binary", [True, False])
T = 3


def model(binary: bool, **arguments):
    torch.manual_seed(0)
    em = small_model("recurrent", binary, num_steps=T, **arguments)
    em.loss = NeuralEMLoss(em.likelihood, step_weights=[1, 2, 4])
    return em


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def assert_equal(one: Grouping, other: Grouping) -> None:
    for field in dataclasses.fields(Iterate):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


@both_kinds
def test_step_t_sees_frame_t_and_explains_frame_t_plus_1(binary):
    em, frames = model(binary), sequences(2, T + 1, binary)
    iterate, total = em.start(frames[:, 0], 3, draws()), frames.new_zeros(())
    for t, grouping in enumerate(em.groupings(frames, generator=draws()), start=1):
        residual = iterate.responsibilities * (frames[:, t - 1].unsqueeze(1) - iterate.mean)
        state, params = em.m_step(residual, iterate.state)
        gamma = em.e_step(frames[:, t], params)
        iterate = Iterate(state=state, params=params, mean=em.likelihood.mean(params), responsibilities=gamma)
        assert_equal(iterate, grouping)
        total = total + (1, 2, 4)[t - 1] * em.loss.of_step(frames[:, t], iterate).total
    loss = em.training_loss(frames, generator=draws())
    assert torch.allclose(loss.total, total)
    assert_equal(loss.last(), iterate)


@both_kinds
def test_a_still_image_is_the_same_frame_again_and_again(binary):
    em, stills = model(binary, num_starts=2), sequences(2, 1, binary)
    em.fast = False
    found = []
    for frames in (stills, stills.expand(-1, T + 1, -1, -1, -1), stills.expand(-1, T + 4, -1, -1, -1)):
        em.zero_grad()
        loss = em.training_loss(frames, generator=draws()).total
        loss.backward()
        gradients = [gradient_of(parameter).clone() for parameter in em.parameters()]
        found.append((em(frames, generator=draws()), loss, gradients))
    trajectory, loss, gradients = found[0]
    for other_trajectory, other_loss, other_gradients in found[1:]:
        for one, other in zip(trajectory, other_trajectory, strict=True):
            assert_equal(one, other)
        assert torch.equal(loss, other_loss) and all(map(torch.equal, gradients, other_gradients))


@pytest.mark.parametrize("num_frames", [2, T])
def test_too_few_frames_are_refused_in_one_line(num_frames):
    em, frames = model(True), sequences(2, num_frames, True)
    message = rf"^frames: {num_frames} a sequence; must be 1 \(still images\) or at least 4 for num_steps=3$"
    for call in (em.groupings, em, em.training_loss):
        with pytest.raises(InputError, match=message):
            call(frames)
    assert len(em(frames, num_steps=num_frames - 1)) == num_frames - 1


@pytest.mark.parametrize(("num_frames", "noise_by_step"), [(1, False), (1, True), (T + 1, False), (T + 1, True)])
def test_noise_reaches_only_what_the_m_step_sees(num_frames, noise_by_step):
    """The first responsibilities, the E-step and the loss have no noise. Noise is drawn before the start, by frame.

    If noise is drawn by step, a still has as much noise as a sequence.
    """
    em, frames = model(True, init="bright_regions", noise_by_step=noise_by_step), sequences(2, num_frames, True)

    def noise(image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return (1 - image) * torch.rand(image.shape, generator=generator).double()

    em.corruption, generator = noise, draws()
    noisy = noise(frames.expand(-1, T + 1, -1, -1, -1) if noise_by_step else frames, generator)
    iterate, expected = em.start(frames[:, 0], 3, generator), frames.new_zeros(())
    for t in range(1, T + 1):
        target = frame_pair(frames, t)[1]
        iterate = em.step(iterate, frame_pair(noisy, t)[0], target)
        expected = expected + (1, 2, 4)[t - 1] * em.loss.of_step(target, iterate).total
    loss = em.training_loss(frames, generator=draws())
    last = loss.last()
    assert isinstance(last, Iterate)
    assert torch.allclose(loss.total, expected) and torch.allclose(last.mean, iterate.mean)
    em.corruption = None
    assert not torch.allclose(em.training_loss(frames, generator=draws()).total, expected)


def test_groups_of_a_step_are_those_of_the_frame_that_it_explains():
    groups = torch.arange(2 * 4).view(2, 4, 1, 1).expand(2, 4, 3, 3)
    assert [groups_of_step(groups, t)[:, 0, 0].tolist() for t in (1, 2, 3)] == [[1, 5], [2, 6], [3, 7]]
    assert [groups_of_step(groups[:, :1], t)[:, 0, 0].tolist() for t in (1, 3)] == [[0, 4], [0, 4]]


@pytest.mark.parametrize("num_frames", [1, T + 1])
def test_iterations_of_a_step_see_and_explain_the_same_frame(num_frames):
    """A step gives its last iterate, and its loss is the mean over its iterations."""
    em, frames = model(True, iterations_per_step=2), sequences(2, num_frames, True)
    iterate, expected, after_steps = em.start(frames[:, 0], 3, draws()), frames.new_zeros(()), []
    for t, weight in enumerate((1, 2, 4), start=1):
        seen, target = frame_pair(frames, t)
        for _ in range(2):
            iterate = em.step(iterate, seen, target)
            expected = expected + weight / 2 * em.loss.of_step(target, iterate).total
        after_steps.append(iterate)
    assert torch.allclose(em.training_loss(frames, generator=draws()).total, expected)
    for found, iterate in zip(em(frames, generator=draws()), after_steps, strict=True):
        assert_equal(found, iterate)


def test_iterations_of_a_step_are_further_steps_on_a_still():
    """Also if K is chosen for each image, and if the best start is."""
    image = sequences(2, 1, True)
    twice, once = model(True, iterations_per_step=2), model(True)
    for choose in (None, 3):
        twice.choose_up_to = once.choose_up_to = choose
        found = twice(image, num_starts=3, generator=draws())
        steps = once(image, num_starts=3, num_steps=2 * T, generator=draws())
        for one, other in zip(found, steps[1::2], strict=True):
            assert_equal(one, other)


def test_the_fast_path_refuses_several_iterations():
    em = model(True, iterations_per_step=2, fast=True)
    with pytest.raises(InputError, match=r"^fast=true: .* because a step has 2 iterations$"):
        em.training_loss(sequences(2, 1, True))
