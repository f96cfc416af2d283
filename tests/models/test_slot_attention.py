"""Slot Attention: what its formulas imply, and that it learns."""

import pytest
import torch
from tiny import few_shapes

from nem_lightning.errors import InputError
from nem_lightning.models.slot_attention import SlotAttention

SHAPE = (1, 8, 12)


def model(**settings) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(**{"image_shape": SHAPE, "slot_size": 8, "channels": 4, **settings}).double()


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_an_iteration_is_algorithm_1():
    slots_model, image = model(), images()[:, 0]
    slots = slots_model.start(4, 3, seeded())
    (found,) = slots_model.iterate(slots, image, 1)

    features = slots_model.norm_features(slots_model.features(slots_model.encoder(image).transpose(1, 2)))
    assert features.shape == (4, 4 * 6, 8)
    keys, values = slots_model.to_key(features), slots_model.to_value(features)
    queries = slots_model.to_query(slots_model.norm_slots(slots))
    attention = torch.softmax(torch.einsum("bnd,bkd->bnk", keys, queries) / 8**0.5, 2) + 1e-8  # over slots
    attention = attention / attention.sum(1, keepdim=True)
    updates = torch.einsum("bnk,bnd->bkd", attention, values)
    new = torch.stack([slots_model.gru(updates[:, k], slots[:, k]) for k in range(3)], 1)
    torch.testing.assert_close(found, new + slots_model.mlp(slots_model.norm_hidden(new)))


def test_slots_can_be_permuted():
    slots_model, image = model(), images()[:, 0]
    slots = slots_model.start(4, 3, seeded())
    order = torch.tensor([2, 0, 1])
    *_, last = slots_model.iterate(slots, image, 3)
    *_, permuted = slots_model.iterate(slots[:, order], image, 3)
    torch.testing.assert_close(permuted, last[:, order])


def test_the_loss_is_the_squared_error_of_the_sum_over_slots():
    slots_model, frames = model(), images()
    loss = slots_model.training_loss(frames, generator=seeded())
    last = slots_model(frames, generator=seeded())[-1]
    torch.testing.assert_close(last.responsibilities.sum(1), torch.ones(4, 1, 8, 12, dtype=torch.float64))
    assert last.mean is not None
    error = (frames[:, 0] - (last.responsibilities * last.mean).sum(1)).square().sum() / 4
    torch.testing.assert_close(loss.total, error)


def test_the_best_of_several_starts_is_kept_for_each_image():
    slots_model, frames = model(), images(10)

    def errors(starts: int) -> torch.Tensor:
        return slots_model.errors(frames[:, 0], slots_model(frames, num_starts=starts, generator=seeded())[-1])

    assert (errors(6) <= errors(1)).all() and (errors(6) < errors(1)).any()


def test_it_learns():
    torch.manual_seed(0)
    slots_model = SlotAttention((1, 28, 28), slot_size=16, channels=8)
    frames = few_shapes(32).frames.float()
    optimizer = torch.optim.Adam(slots_model.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(slots_model.training_loss(frames, generator=seeded()).total)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * frames.var() * 28 * 28, "no better than the mean grey"


def test_what_it_refuses():
    with pytest.raises(InputError, match="must be multiples of 4"):
        model(image_shape=(1, 6, 8))
    with pytest.raises(InputError, match="slot_size=0"):
        model(slot_size=0)
    with pytest.raises(InputError, match="SlotAttention takes still images only"):
        model()(torch.zeros(2, 4, *SHAPE).double())
