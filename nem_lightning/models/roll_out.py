"""Roll-out: after T steps on real frames, the model's own predictions take the place of the frames."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nem_lightning.errors import require, require_count
from nem_lightning.models.em import Iterate, NeuralEM


def prediction(em: NeuralEM, iterate: Iterate) -> Tensor:
    """Predict a frame from the means of all components: the brightest one at each pixel, as objects cover black.

    Args:
        em: the model; its pixels are rounded if they are binary.
        iterate: the state of EM before the frame is seen.

    Returns:
        (B, C, H, W).
    """
    brightest = iterate.mean.amax(1)
    return brightest.round() if em.binary else brightest


@torch.no_grad()
def roll_out(
    em: NeuralEM,
    frames: Tensor,
    *,
    num_steps: int,
    horizon: int,
    num_components: int | None = None,
    num_starts: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Predict the frames T + 1, T + 2, ..., counted from 0, from the frames 0 to T.

    The M-step sees frame T, and from then on each prediction. The E-step explains each prediction, too.

    Args:
        em: a model that predicts the next frame.
        frames: (B, F, C, H, W), F at least T + 1; frames after T are not looked at.
        num_steps: T, at least 1.
        horizon: how many frames to predict, at least 1.
        num_components: K; the model's own by default.
        num_starts: how many starts to choose from.
        generator: draws the start.

    Yields:
        Each predicted frame, (B, C, H, W).

    Raises:
        InputError: still images, too few frames, or a number below 1.
    """
    require_count("horizon", horizon)
    require(frames.shape[1] > 1, "frames: still images cannot be rolled out; must be sequences")
    is_chosen = num_components is None and em.choose_up_to is not None
    require(not is_chosen, "num_components: auto cannot be rolled out; must be an integer")
    steps = em.groupings(
        frames, num_components=num_components, num_steps=num_steps, num_starts=num_starts, generator=generator
    )
    iterate, seen = deque(steps, maxlen=1).pop(), frames[:, num_steps]
    assert isinstance(iterate, Iterate)
    for _ in range(horizon):
        before = seen
        for _ in range(em.iterations_per_step):
            residual = iterate.responsibilities * (before.unsqueeze(1) - iterate.mean)
            state, params = em.m_step(residual, iterate.state)
            unseen = replace(iterate, mean=em.likelihood.mean(params), state=state, params=params)
            seen = prediction(em, unseen)
            iterate = em.explain(seen, state, params)
        yield seen
