"""Predictions that take the place of frames."""

import pytest
import torch
from tiny import TinySequences, tiny_model

from nem_lightning.errors import InputError
from nem_lightning.models.em import Iterate
from nem_lightning.models.roll_out import prediction, roll_out


def test_predictions_take_the_place_of_frames():
    """The loop gives the same on a sequence whose later frames are the predictions."""
    em = tiny_model().eval()
    frames = TinySequences(num_frames=6).load("test").frames[:3].float()
    found = list(roll_out(em, frames[:, :4], num_steps=3, horizon=2, generator=torch.Generator().manual_seed(0)))
    assert len(found) == 2 and found[0].shape == (3, 1, 6, 5) and set(found[0].unique().tolist()) <= {0.0, 1.0}
    extended = torch.cat([frames[:, :4], torch.stack(found, 1)], 1)
    with torch.no_grad():
        iterates = list(em.groupings(extended, num_steps=5, generator=torch.Generator().manual_seed(0)))
    for step, frame in zip(iterates[3:], found, strict=True):
        assert isinstance(step, Iterate) and torch.equal(prediction(em, step), frame)
    changed = frames.clone()
    changed[:, 4:] = 1 - changed[:, 4:]  # the model does not see these frames
    again = list(roll_out(em, changed, num_steps=3, horizon=2, generator=torch.Generator().manual_seed(0)))
    assert all(map(torch.equal, found, again))


def test_all_iterations_of_a_step_see_the_same_frame():
    em, frames = tiny_model(), TinySequences(num_frames=4).load("test").frames[:3].float()
    em.eval().iterations_per_step = 2
    with torch.no_grad():
        *_, iterate = em.groupings(frames, num_steps=3, generator=torch.Generator().manual_seed(0))
    seen = frames[:, 3]
    for found in roll_out(em, frames, num_steps=3, horizon=2, generator=torch.Generator().manual_seed(0)):
        expected = seen
        for _ in range(2):
            assert isinstance(iterate, Iterate)
            with torch.no_grad():
                expected = prediction(em, em.step(iterate, seen, expected))
                iterate = em.step(iterate, seen, expected)
        assert torch.equal(found, expected)
        seen = found


def test_bad_input():
    em, frames = tiny_model(), TinySequences().load("test").frames[:2].float()
    with pytest.raises(InputError, match="still images cannot be rolled out"):
        next(roll_out(em, frames[:, :1], num_steps=1, horizon=1))
    em.choose_up_to = 3
    with pytest.raises(InputError, match="num_components: auto cannot be rolled out"):
        next(roll_out(em, frames, num_steps=1, horizon=1))
    em.choose_up_to = None
    with pytest.raises(InputError, match="horizon=0"):
        next(roll_out(em, frames, num_steps=1, horizon=0))
    with pytest.raises(InputError, match="frames: 4 a sequence; must be 1"):
        next(roll_out(em, frames, num_steps=4, horizon=1))
