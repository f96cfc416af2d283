import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tiny import TinyImages, tiny_module, tiny_trainer

from nem_lightning.callbacks import CheckpointOnInterrupt, LogGroupings, NonFiniteLoss, StopOnNonFiniteLoss


class PoisonAt(pl.Callback):
    """Makes the weights NaN before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            pl_module.em.m_step.input_layer.weight.data.fill_(torch.nan)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_good_checkpoint(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="best", save_last=True)
    trainer = tiny_trainer(tmp_path, max_epochs=5, callbacks=[PoisonAt(12), StopOnNonFiniteLoss(), checkpoint])
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 13 \(epoch 2\); last good checkpoint: .*last.ckpt"):
        trainer.fit(tiny_module(), TinyImages())  # 5 steps an epoch
    for name in ("best", "last"):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert saved["global_step"] == 10
        assert all(weight.isfinite().all() for weight in saved["state_dict"].values())


def test_it_is_noticed_before_a_checkpoint_even_when_read_rarely(tmp_path, monkeypatch):
    """As on a GPU: not at every step, but before validation."""
    monkeypatch.setattr(StopOnNonFiniteLoss, "on_train_batch_end", _note_only(StopOnNonFiniteLoss))
    checkpoint = ModelCheckpoint(tmp_path, filename="best", save_last=True)
    trainer = tiny_trainer(tmp_path, max_epochs=5, callbacks=[PoisonAt(6), StopOnNonFiniteLoss(), checkpoint])
    with pytest.raises(NonFiniteLoss, match="not finite at step 7 "):
        trainer.fit(tiny_module(), TinyImages())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def _note_only(callback):
    original = callback.on_train_batch_end

    def noted(self, *arguments):
        check, self._check = self._check, lambda trainer: None
        original(self, *arguments)
        self._check = check

    return noted


class InterruptAt(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_leaves_a_checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "interrupted.ckpt"
    trainer = tiny_trainer(tmp_path, max_epochs=5, callbacks=[InterruptAt(), CheckpointOnInterrupt(str(path))])
    with pytest.raises(SystemExit):
        trainer.fit(tiny_module(), TinyImages())
    assert torch.load(path, weights_only=True)["global_step"] == 7
    resumed = tiny_trainer(tmp_path, max_epochs=3)
    resumed.fit(tiny_module(), TinyImages(), ckpt_path=path, weights_only=True)
    assert resumed.global_step >= 14


def test_groupings_of_the_same_images_go_to_the_logger(tmp_path, monkeypatch):
    drawn = []
    logger = TensorBoardLogger(tmp_path, name="", version="")
    monkeypatch.setattr(
        logger.experiment, "add_figure", lambda tag, figure, step: drawn.append((tag, len(figure.axes), step))
    )
    trainer = tiny_trainer(tmp_path, max_epochs=2, logger=logger, callbacks=[LogGroupings(num_images=2)])
    trainer.fit(tiny_module(), TinyImages())
    axes = (2 + 1) * (3 + 2)
    assert drawn == [(f"val/groupings/{i}", axes, step) for step in (5, 10) for i in range(2)]
