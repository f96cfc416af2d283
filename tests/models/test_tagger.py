"""Tagger against its formulas, written out in NumPy."""

import numpy as np
import pytest
import torch
from tiny import SHAPE, TinyImages
from torch import nn

from nem_lightning.errors import InputError
from nem_lightning.models.corruption import BitFlip
from nem_lightning.models.tagger import Tagger, Tagging

K, PIXELS = 3, SHAPE[1] * SHAPE[2]
SMALL = {"image_shape": SHAPE, "hidden_sizes": (9, 7, 5), "num_components": K}


def model(**settings) -> Tagger:
    """A model in double precision whose weights are all random, those too that are 0 or 1 at first."""
    torch.manual_seed(0)
    tagger = Tagger(**{**SMALL, **settings}).double()
    for weight in tagger.parameters():
        if weight.dim() < 2 or weight.shape[0] == 5:
            nn.init.normal_(weight, std=0.5)
    return tagger


def images(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 2, (count, 1, *SHAPE), generator=torch.Generator().manual_seed(1)).double()


def weights(tagger: Tagger) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in tagger.state_dict().items()}


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def of_units(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)


def of_batch(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)


def lateral(w: dict[str, np.ndarray], level: int, z: np.ndarray, u: np.ndarray) -> np.ndarray:
    mu, v = (
        a[0] * sigmoid(a[1] * u + a[2]) + a[3] * u + a[4]
        for a in (w[f"mapping.laterals.{level}.{name}"] for name in ("mean", "scale"))
    )
    return (z - mu) * v + mu


def ladder(w: dict[str, np.ndarray], rows: np.ndarray, norm) -> np.ndarray:
    z, h = [], rows
    for level in range(3):
        z.append(norm(h @ w[f"mapping.encoder.{level}.linear.weight"].T))
        h = np.maximum(0, z[-1] + w[f"mapping.biases.{level}"])
    estimate = lateral(w, 2, z[2], norm(h))
    estimate = lateral(w, 1, z[1], norm(estimate @ w["mapping.decoder.1.linear.weight"].T))
    return lateral(w, 0, z[0], norm(estimate @ w["mapping.decoder.0.linear.weight"].T))


def dense(w: dict[str, np.ndarray], rows: np.ndarray, norm) -> np.ndarray:
    for level in range(3):
        rows = np.maximum(0, norm(rows @ w[f"mapping.layers.{level}.linear.weight"].T) + w[f"mapping.biases.{level}"])
    return rows


@pytest.mark.parametrize(("mapping", "network"), [("ladder", ladder), ("dense", dense)])
@pytest.mark.parametrize(("norm", "normalize"), [("layer", of_units), ("batch", of_batch)])
def test_the_iterations_and_the_cost_are_those_of_the_paper(mapping, network, norm, normalize):
    n, tagger, frames = 0.2, model(mapping=mapping, norm=norm), images()
    w = weights(tagger)
    found = tagger.training_loss(frames, generator=torch.Generator().manual_seed(2))

    generator = torch.Generator().manual_seed(2)  # in the order of the model's draws
    x = frames.numpy().reshape(5, 1, PIXELS)
    y = BitFlip(n)(frames[:, 0], generator).numpy().reshape(5, 1, PIXELS)
    noise = torch.randn(5, K, 1, *SHAPE[1:], dtype=torch.float64, generator=generator)
    m, logits = softmax(noise.numpy().reshape(5, K, PIXELS), 1), np.full((5, K, PIXELS), np.log(0.26 / 0.74))
    z = np.full((5, K, PIXELS), 0.26)
    costs = []
    for _ in range(3):
        p = z * (1 - 2 * n) + n
        xi = (m * p).sum(1, keepdims=True)
        dz = m * (1 - 2 * n) / (xi - 1 + y)
        likelihood = np.where(y == 1, p, 1 - p)
        inputs = np.concatenate([logits, dz, m, likelihood / likelihood.sum(1, keepdims=True)], 2)
        hidden = network(w, inputs.reshape(5 * K, -1), normalize)
        logits = (hidden @ w["to_logits.weight"].T + w["to_logits.bias"]).reshape(5, K, PIXELS)
        m = softmax((hidden @ w["to_mask.weight"].T + w["to_mask.bias"]).reshape(5, K, PIXELS), 1)
        z = sigmoid(logits)
        q = (m * z).sum(1, keepdims=True)
        costs.append(-(x * np.log(q) + (1 - x) * np.log(1 - q)).sum() / 5)
    assert found.total.item() == pytest.approx(np.mean(costs), rel=1e-6)
    last = found.last()
    assert last.mean is not None
    np.testing.assert_allclose(last.responsibilities.detach().numpy().reshape(m.shape), m, rtol=1e-5)
    np.testing.assert_allclose(last.mean.detach().numpy().reshape(z.shape), z, rtol=1e-5)


def test_dz_is_the_gradient_of_the_log_likelihood():
    tagger, noisy = model(), images()[:, 0]
    logits = torch.randn(5, K, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = torch.rand(5, K, 1, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(4)).softmax(1)
    z = logits.sigmoid().requires_grad_()
    xi = (mask * (z * 0.6 + 0.2)).sum(1)
    torch.where(noisy == 1, xi, 1 - xi).log().sum().backward()
    _, gradient, _, _ = tagger.inputs(Tagging(responsibilities=mask, mean=z.detach(), logits=logits), noisy)
    torch.testing.assert_close(gradient, z.grad)


def test_the_test_sees_the_clean_image_for_more_iterations():
    tagger = model(num_steps=5)
    frames, generator = images(), torch.Generator().manual_seed(5)
    found = tagger(frames, generator=generator)
    assert len(found) == 5
    start = tagger.start(frames[:, 0], K, torch.Generator().manual_seed(5))
    for grouping, state in zip(found, tagger.steps(start, frames[:, 0], 5), strict=True):
        torch.testing.assert_close(grouping.responsibilities, state.responsibilities)


def test_batch_statistics_are_those_of_the_iteration():
    tagger = model(norm="batch")
    tagger.training_loss(images(), generator=torch.Generator().manual_seed(0))
    tagger.eval()
    with torch.no_grad():
        alone = tagger(images()[:1], generator=torch.Generator().manual_seed(0))  # one image: its statistics are no use
    assert alone[-1].responsibilities.isfinite().all()
    means = [layer.running_mean for layer in tagger.mapping.encoder[0].norm.of_iteration]
    assert len(means) == 3 and not torch.equal(means[0], means[1])


def test_the_cost_in_half_precision():
    tagger, image = Tagger(**SMALL), images()[:, 0].float()
    mean = (1 - image.bfloat16()).unsqueeze(1).expand(-1, K, -1, -1, -1)  # wrong everywhere
    wrong = Tagging(responsibilities=torch.full_like(mean, 1 / K), mean=mean, logits=mean)
    with torch.autocast("cpu", torch.bfloat16):
        cost = tagger.cost(image, wrong)
    assert cost.item() == pytest.approx(-PIXELS * np.log(1e-6), rel=0.01)


def test_it_learns():
    """Stripes that are restored from noise: the cost falls to less than half of what the mean gray gives."""
    torch.manual_seed(0)
    tagger = Tagger(**{**SMALL, "hidden_sizes": (60, 30)})
    frames = TinyImages().load("train").frames.float()
    optimizer = torch.optim.Adam(tagger.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(tagger.training_loss(frames, generator=generator).total)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_what_it_refuses():
    for settings, message in (
        ({"mapping": "conv"}, "mapping='conv': must be one of ladder, dense"),
        ({"norm": "none"}, "norm='none': must be one of layer, batch"),
        ({"hidden_sizes": []}, r"hidden_sizes=\[\]: must have one number for each layer"),
        ({"hidden_sizes": [0]}, "hidden_sizes=0: must be an integer of at least 1"),
        ({"flip_prob": 0.5}, "flip_prob=0.5: must lie in"),
        ({"training_steps": 0}, "training_steps=0"),
    ):
        with pytest.raises(InputError, match=message):
            model(**settings)
    with pytest.raises(InputError, match="Tagger takes still images only"):
        model()(torch.zeros(2, 6, *SHAPE).double())
