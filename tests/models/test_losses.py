import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import kl_divergence

from nem_lightning.errors import InputError
from nem_lightning.models.em import Iterate
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.losses import NeuralEMLoss


def random_trajectory(steps: int) -> tuple[torch.Tensor, list[Iterate]]:
    torch.manual_seed(0)
    image = torch.rand(4, 2, 3, 3).round()
    trajectory = []
    for _ in range(steps):
        params = torch.randn(4, 3, 2, 3, 3)
        trajectory.append(
            Iterate(
                state=torch.zeros(4, 3, 1),
                params=params,
                mean=params.sigmoid(),
                responsibilities=torch.randn(4, 3, 1, 3, 3).softmax(1),
            )
        )
    return image, trajectory


def test_equation_5_with_the_sign_that_the_text_describes():
    image, (iterate,) = random_trajectory(1)
    gamma, p = iterate.responsibilities, TorchBernoulli(logits=iterate.params)
    intra = (gamma * -p.log_prob(image.unsqueeze(1).expand_as(iterate.params))).sum() / 4
    inter = ((1 - gamma) * kl_divergence(TorchBernoulli(torch.tensor(0.1)), p)).sum() / 4
    loss = NeuralEMLoss(Bernoulli(), prior=0.1, prior_weight=0.5).of_step(image, iterate)
    assert torch.allclose(loss.intra, intra) and torch.allclose(loss.inter, inter)
    assert torch.allclose(loss.total, intra + 0.5 * inter)
    assert inter > 0


@pytest.mark.parametrize(
    ("step_weights", "expected"),
    [("last", [0, 0, 0, 1]), ("all", [0.25] * 4), ("rising", [0.1, 0.2, 0.3, 0.4]), ([0, 1, 2, 0], [0, 1, 2, 0])],
)
def test_step_weights(step_weights, expected):
    image, trajectory = random_trajectory(4)
    loss = NeuralEMLoss(Bernoulli(), step_weights=step_weights)
    total = loss(image.unsqueeze(1), trajectory)
    by_step = [loss.of_step(image, iterate).total for iterate in trajectory]
    assert torch.allclose(total, torch.stack([w * value for w, value in zip(expected, by_step, strict=True)]).sum())


def test_the_loss_of_a_sequence_compares_step_t_with_frame_t_plus_1():
    _, trajectory = random_trajectory(3)
    frames = torch.rand(4, 4, 2, 3, 3).round()
    loss = NeuralEMLoss(Bernoulli(), step_weights=[1, 2, 4])
    expected = [w * loss.of_step(frames[:, t], trajectory[t - 1]).total for t, w in ((1, 1), (2, 2), (3, 4))]
    assert torch.allclose(loss(frames, trajectory), torch.stack(expected).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior_weight": -1}, "prior_weight=-1"),
        ({"prior": 1.5}, r"prior=1.5: must lie in \[0, 1\]"),
        ({"step_weights": "first"}, "step_weights='first': must be 'last', 'all', 'rising' or a list"),
        ({"step_weights": [0, 0]}, "step_weights"),
        ({"step_weights": {"last": 1}}, "step_weights={'last': 1}: must be 'last', 'all', 'rising' or a list"),
        ({"step_weights": 3}, "step_weights=3: must be 'last', 'all', 'rising' or a list of numbers"),
        ({"step_weights": [1, -1]}, "step_weights"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        NeuralEMLoss(Bernoulli(), **arguments)


def test_a_gaussian_prior_may_lie_anywhere():
    NeuralEMLoss(Gaussian(1.0), prior=-2.0)


def test_step_weights_of_another_length():
    with pytest.raises(InputError, match="has 2 weights, must have one for each of the 3 steps"):
        NeuralEMLoss(Bernoulli(), step_weights=[1, 1]).weights(3)
