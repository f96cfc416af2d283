"""The code that all data sets share."""

import pytest
import torch
from tiny import TinySequences
from torch.utils.data import DistributedSampler

from nem_lightning.datamodules.base import EachOnce, TensorFrames
from nem_lightning.errors import InputError


def test_batches_of_sequences():
    data = TinySequences(num_frames=4, batch_size=7)
    data.setup()
    batches = list(data.test_dataloader())
    assert [len(batch["frames"]) for batch in batches] == [7, 7, 7, 3]
    assert batches[0]["frames"].shape == (7, 4, 1, 6, 5) and batches[0]["groups"].shape == (7, 4, 6, 5)
    assert batches[0]["frames"].dtype == torch.float32 and batches[0]["groups"].dtype == torch.int64
    assert torch.equal(torch.cat([batch["groups"] for batch in batches]), data.stages["test"].groups.long())


def test_pixels_are_divided_by_the_scale_and_groups_keep_void():
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 1, 3)
    groups = torch.tensor([-1, 0, 20], dtype=torch.int16).view(1, 1, 1, 3)
    item = TensorFrames(frames, groups, scale=255)[0]
    assert item["frames"].flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert item["groups"].flatten().tolist() == [-1, 0, 20]


@pytest.mark.parametrize(
    ("frames", "groups"), [((5, 1, 6, 5), (5, 6, 5)), ((5, 2, 1, 6, 5), (5, 1, 6, 5)), ((5, 1, 1, 6, 5), (5, 6, 5))]
)
def test_shapes_that_do_not_fit(frames, groups):
    with pytest.raises(InputError, match=r"must be \(N, F, C, H, W\) and \(N, F, H, W\)"):
        TensorFrames(torch.zeros(frames), torch.zeros(groups))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_item_is_on_exactly_one_process_and_lightning_leaves_it_there(world):
    """Lightning would split the images of another sampler once more, so half of the images would not be scored."""
    samplers = [EachOnce(7, world, rank) for rank in range(world)]
    assert sorted(index for sampler in samplers for index in sampler) == list(range(7))
    assert sum(map(len, samplers)) == 7 and all(isinstance(sampler, DistributedSampler) for sampler in samplers)
