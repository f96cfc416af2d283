"""Other uses of a module than the two commands: predictions, data without groups, tensors of another kind."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import TinyImages, tiny_module, tiny_trainer
from torch.utils.data import DataLoader

from nem_lightning.errors import InputError, require_count, require_number, require_positive
from nem_lightning.models.grouping import Grouping


class WithoutGroups(TinyImages):
    """Gives batches of frames of the type ``kind``, without groups."""

    kind = torch.float32

    def eval_dataloader(self, stage: str) -> DataLoader:
        images = self._load_once(stage)
        frames = [{"frames": images[index]["frames"].to(self.kind)} for index in range(30)]
        return DataLoader(frames, 16)  # pyright: ignore[reportArgumentType]

    def train_dataloader(self) -> DataLoader:
        return self.eval_dataloader("train")


def test_predictions_are_groupings(tmp_path):
    module, data = tiny_module(), TinyImages()
    found: Any = tiny_trainer(tmp_path).predict(module, data)
    assert [len(grouping.responsibilities) for grouping in found] == [16, 14]
    assert isinstance(found[0], Grouping) and found[0].responsibilities.shape == (16, 2, 1, 6, 5)
    assert torch.allclose(found[0].responsibilities.sum(1), torch.ones(16, 1, 6, 5))
    loader = WithoutGroups().eval_dataloader("test")
    again: Any = tiny_trainer(tmp_path).predict(module, loader)
    assert torch.equal(again[0].responsibilities, found[0].responsibilities)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_data_without_groups_trains_validates_and_tests(tmp_path, kind):
    module, data = tiny_module(), WithoutGroups()
    data.kind = kind
    trainer = tiny_trainer(tmp_path)
    trainer.fit(module, data)
    assert trainer.global_step == 2 and trainer.callback_metrics["val/reconstruction_error"] > 0
    assert trainer.callback_metrics["val/ami_max"].isnan()
    trainer.test(module, data, verbose=False)
    assert module.test_scores is not None and module.test_scores.unscored_images == module.test_scores.num_images == 30


def test_integers_for_pixels_are_refused(tmp_path):
    data = WithoutGroups()
    data.kind = torch.uint8
    with pytest.raises(InputError, match=r"frames are torch.uint8 on cpu: must be floating-point, on cpu as the mod"):
        tiny_trainer(tmp_path).fit(tiny_module(), data)


def test_numbers_of_numpy_are_numbers():
    for number in (np.int64(3), np.uint8(3)):
        require_count("n", number)
    for number in (np.float32(0.5), np.float64(0.5), np.int32(1)):
        require_positive("x", number)
        require_number("x", number, 0, 1)
    with pytest.raises(InputError, match="n=0: must be an integer of at least 1"):
        require_count("n", np.int64(0))
    with pytest.raises(InputError, match="must be an integer"):
        require_count("n", np.bool_(True))
    assert TinyImages(batch_size=np.int64(4)).batch_size == 4  # pyright: ignore[reportArgumentType]
