"""The module's optimizer and learning rate."""

import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from tiny import TinyImages, tiny_module, tiny_trainer

from nem_lightning.errors import InputError
from nem_lightning.training.module import GroupingModule


def test_groups_of_parameters_keep_their_learning_rates(tmp_path):
    """Also in a resumed run, which uses its own settings."""

    def module(*rates: float, decay: bool) -> GroupingModule:
        def optimizer(parameters) -> torch.optim.Optimizer:
            one, *others = parameters
            return torch.optim.SGD([{"params": [one], "lr": rates[0]}, {"params": others}], lr=rates[1])

        found = tiny_module(decay=decay)
        found.optimizer = optimizer
        return found

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    for decay, first, resumed in ((False, 1, 1), (True, 1, 0.5)):
        seen = []
        trainer = tiny_trainer(tmp_path, callbacks=[Rates()])
        trainer.fit(module(1e-3, 0.1, decay=decay), TinyImages())
        assert seen[0] == pytest.approx([1e-3 * first, 0.1 * first])
        trainer.save_checkpoint(tmp_path / "here.ckpt")
        seen.clear()
        trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[Rates()])
        trainer.fit(module(3e-3, 0.2, decay=decay), TinyImages(), ckpt_path=tmp_path / "here.ckpt")
        assert seen[0] == pytest.approx([3e-3 * resumed, 0.2 * resumed])


def test_a_subclass_may_have_a_schedule_of_its_own(tmp_path):
    class WarmUp(GroupingModule):
        def configure_optimizers(self) -> OptimizerLRScheduler:
            optimizer = super().configure_optimizers()
            assert isinstance(optimizer, torch.optim.Optimizer)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, 3)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    rates, module = LearningRates(), tiny_module(lr=0.1)
    module.__class__ = WarmUp
    tiny_trainer(tmp_path, callbacks=[rates]).fit(module, TinyImages())
    assert rates.seen == pytest.approx([0.001, 0.034, 0.067, 0.1, 0.1])


class LearningRates(pl.Callback):
    def __init__(self) -> None:
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_the_learning_rate_falls_to_nothing_over_the_run_by_its_own_settings(tmp_path):
    """Also in a run that is resumed with another learning rate and length."""
    rates, more = LearningRates(), LearningRates()
    trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[rates])
    trainer.fit(tiny_module(lr=1.0, decay=True), TinyImages())  # 5 batches an epoch
    assert rates.seen == pytest.approx([(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    trainer = tiny_trainer(tmp_path, max_epochs=4, callbacks=[more])
    trainer.fit(tiny_module(lr=3.0, decay=True), TinyImages(), ckpt_path=tmp_path / "here.ckpt")
    assert more.seen == pytest.approx([3 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(10, 20)])


def test_an_optimizer_that_does_not_take_its_settings():
    with pytest.raises(InputError, match="optimizer: Invalid learning rate: -1"):
        tiny_module(lr=-1)
