import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from tiny import TinyImages, em_of, m_step_of, tiny_module, tiny_trainer

from nem_lightning.runs.signals import Preempted, StopOnSignal
from nem_lightning.training.callbacks import (
    BestCheckpoint,
    CheckpointOnInterrupt,
    LogGroupings,
    NonFiniteLoss,
    StopOnNonFiniteLoss,
)


class PoisonAt(pl.Callback):
    """Makes the weights NaN before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            m_step_of(em_of(pl_module)).input_layer.weight.data.fill_(torch.nan)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_good_checkpoint(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="best", save_last=True)
    trainer = tiny_trainer(tmp_path, max_epochs=5, callbacks=[PoisonAt(12), StopOnNonFiniteLoss(), checkpoint])
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 13 \(epoch 2\); last good checkpoint: .*last.ckpt"):
        trainer.fit(tiny_module(), TinyImages())  # 5 steps an epoch
    for name in ("best", "last"):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert saved["global_step"] == 10
        assert all(weight.isfinite().all() for weight in saved["state_dict"].values())


def test_weights_that_are_not_numbers_after_the_last_step_of_an_epoch(tmp_path):
    class PoisonAfter(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 10:
                m_step_of(em_of(pl_module)).input_layer.weight.data.fill_(torch.nan)

    checkpoint = ModelCheckpoint(tmp_path, filename="best", save_last=True)
    trainer = tiny_trainer(tmp_path, max_epochs=5, callbacks=[PoisonAfter(), StopOnNonFiniteLoss(), checkpoint])
    with pytest.raises(NonFiniteLoss, match=r"the weights are not finite at step 10 .*last.ckpt"):
        trainer.fit(tiny_module(), TinyImages())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def saver_of(trainer: pl.Trainer) -> ModelCheckpoint:
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    return trainer.checkpoint_callback


def test_a_run_that_goes_on_elsewhere_takes_the_best_checkpoint_along(tmp_path):
    def trainer(name: str, epochs: int) -> pl.Trainer:
        save = BestCheckpoint(tmp_path / name, filename="best", monitor="val/reconstruction_error")
        last = ModelCheckpoint(tmp_path / name, filename="last", enable_version_counter=False)
        return tiny_trainer(tmp_path, max_epochs=epochs, callbacks=[save, last])

    first = trainer("first", 3)
    first.fit(tiny_module(), TinyImages())
    best = saver_of(first).best_model_score
    assert best is not None
    second = trainer("second", 4)
    worse = tiny_module(lr=100.0)  # the high learning rate spoils the weights in the fourth epoch
    last = tmp_path / "first" / "last.ckpt"
    second.fit(worse, TinyImages(), ckpt_path=last, weights_only=True)
    saver = saver_of(second)
    assert second.callback_metrics["val/reconstruction_error"] > best
    assert saver.best_model_score == best
    assert saver.best_model_path == str(tmp_path / "second" / "best.ckpt")
    assert (tmp_path / "second" / "best.ckpt").read_bytes() == (tmp_path / "first" / "best.ckpt").read_bytes()
    assert torch.load(tmp_path / "second" / "last.ckpt", weights_only=True)["global_step"] == 20
    assert torch.load(tmp_path / "first" / "last.ckpt", weights_only=True)["global_step"] == 15


def test_a_resumed_run_takes_the_learning_rate_of_its_own_settings(tmp_path):
    save = ModelCheckpoint(tmp_path, filename="model")
    tiny_trainer(tmp_path, callbacks=[save]).fit(tiny_module(lr=1e-2), TinyImages())
    resumed = tiny_trainer(tmp_path, max_epochs=2)
    resumed.fit(tiny_module(lr=1e-4), TinyImages(), ckpt_path=save.best_model_path, weights_only=True)
    assert resumed.optimizers[0].param_groups[0]["lr"] == 1e-4


def test_it_is_noticed_before_a_checkpoint_even_when_read_rarely(tmp_path, monkeypatch):
    """The loss is read as on a GPU: before validation, not at every step."""
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
    """Interrupts a run like Ctrl-C, at a step and at a hook of the callbacks."""

    def __init__(self, hook: str, step: int) -> None:
        def interrupt(trainer, *arguments):
            if trainer.global_step == step and trainer.state.fn == "fit":
                raise KeyboardInterrupt

        setattr(self, hook, interrupt)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # the interrupted validation is left out
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_start", 0),
        ("on_train_batch_start", 7),  # within an epoch: 5 steps each
        ("on_train_batch_end", 7),
        ("on_train_batch_end", 10),
        ("on_validation_start", 10),
        ("on_validation_batch_end", 10),
        ("on_validation_end", 10),
        ("on_train_epoch_end", 10),
    ],
)
def test_a_run_interrupted_anywhere_goes_on_as_if_it_had_not_been(tmp_path, hook, step):
    scores: dict[str, dict[int, float]] = {"undisturbed": {}, "run": {}}

    class Record(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            score = trainer.callback_metrics["val/reconstruction_error"].item()
            scores[Path(trainer.default_root_dir).name][trainer.current_epoch] = score

    def trainer(folder, *callbacks):
        stop = EarlyStopping("val/reconstruction_error", patience=10, strict=False)
        save = ModelCheckpoint(folder, filename="best", monitor="val/reconstruction_error", save_last=True)
        return tiny_trainer(folder, max_epochs=4, callbacks=[stop, save, Record(), *callbacks])

    undisturbed, resumed = tiny_module(), tiny_module()
    trainer(tmp_path / "undisturbed").fit(undisturbed, TinyImages())
    path = tmp_path / "run" / "interrupted.ckpt"
    with pytest.raises(SystemExit):
        interrupted = trainer(tmp_path / "run", InterruptAt(hook, step), CheckpointOnInterrupt(str(path)))
        interrupted.fit(tiny_module(), TinyImages())
    assert torch.load(path, weights_only=True)["global_step"] == step
    torch.manual_seed(123)  # the process that goes on may have any random state
    on_load = CheckpointOnInterrupt(str(path))
    trainer(tmp_path / "run", on_load).fit(resumed, TinyImages(), ckpt_path=path, weights_only=True)
    for name, weight in undisturbed.model.named_parameters():
        assert torch.equal(weight, resumed.model.get_parameter(name)), name
    expected = scores["undisturbed"]
    if scores["run"].keys() != expected.keys():  # a run interrupted around a validation goes on after it
        assert step == 10
        expected.pop(1)
    assert scores["run"] == expected


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_groupings_of_the_same_images_go_to_the_logger(tmp_path, monkeypatch):
    drawn = []
    logger = TensorBoardLogger(tmp_path, name="", version="")
    monkeypatch.setattr(
        logger.experiment, "add_figure", lambda tag, figure, step: drawn.append((tag, texts_of(figure), step))
    )
    trainer = tiny_trainer(tmp_path, max_epochs=2, logger=logger, callbacks=[LogGroupings(num_images=2)])
    trainer.fit(tiny_module(), TinyImages())
    texts = ["input", "true groups", *(f"step {t}" for t in (1, 2, 3)), "mean 1", "mean 2"]
    assert drawn == [(f"val/groupings/{i}", texts, step) for step in (4, 9) for i in range(2)]


class KillIn(pl.Callback):
    """Sends SIGTERM, or another signal, in a batch. Batches are counted from the start of training."""

    def __init__(self, batch: int, number: int = signal.SIGTERM) -> None:
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("batch", [0, 2, 4, 5, 6])
def test_a_signal_waits_while_gradients_accumulate(tmp_path, batch):
    def trainer(*callbacks):
        return tiny_trainer(tmp_path, max_epochs=2, accumulate_grad_batches=3, callbacks=[StopOnSignal(), *callbacks])

    undisturbed, resumed, path = tiny_module(), tiny_module(), tmp_path / "interrupted.ckpt"
    trainer().fit(undisturbed, TinyImages())  # 5 batches, 2 steps an epoch
    with pytest.raises(Preempted):
        trainer(KillIn(batch), CheckpointOnInterrupt(str(path))).fit(tiny_module(), TinyImages())
    trainer(CheckpointOnInterrupt(str(path))).fit(resumed, TinyImages(), ckpt_path=path, weights_only=True)
    assert all(map(torch.equal, undisturbed.model.parameters(), resumed.model.parameters()))


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_a_signal_waits_for_a_validation_that_is_counted_over_epochs(tmp_path, batch):
    validated = []

    class Record(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            validated.append(trainer.global_step)

    def trainer(*callbacks):
        every = {"check_val_every_n_epoch": None, "val_check_interval": 3}
        return tiny_trainer(tmp_path, max_epochs=3, callbacks=[StopOnSignal(), Record(), *callbacks], **every)

    path = tmp_path / "interrupted.ckpt"
    with pytest.raises(Preempted):
        trainer(KillIn(batch), CheckpointOnInterrupt(str(path))).fit(tiny_module(), TinyImages())
    trainer(CheckpointOnInterrupt(str(path))).fit(tiny_module(), TinyImages(), ckpt_path=path, weights_only=True)
    assert validated == [3, 6, 9, 12, 15]


class Rows(Logger):
    """Keeps what is logged, as (step, numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params: object) -> None: ...


@pytest.mark.parametrize(
    "stop",
    [
        *(KillIn(batch, number) for number in (signal.SIGTERM, signal.SIGINT) for batch in (0, 3, 4, 6)),
        *(InterruptAt(hook, 7) for hook in ("on_train_batch_start", "on_before_zero_grad", "on_train_batch_end")),
        InterruptAt("on_train_batch_start", 5),  # the first of an epoch
    ],
    ids=lambda stop: "-".join(map(str, vars(stop).values())) if isinstance(stop, KillIn) else next(iter(vars(stop))),
)
@pytest.mark.parametrize("every", [1, 2])
def test_a_stopped_run_logs_the_rows_of_an_undisturbed_one(tmp_path, stop, every):
    def trainer(logger: Rows, *callbacks) -> pl.Trainer:
        settings = {"max_epochs": 3, "logger": logger, "log_every_n_steps": every}
        own = [StopOnSignal(), CheckpointOnInterrupt(str(path)), *callbacks]
        return tiny_trainer(tmp_path, callbacks=own, **settings)

    path, undisturbed, stopped = tmp_path / "interrupted.ckpt", Rows(), Rows()
    trainer(undisturbed).fit(tiny_module(), TinyImages())
    with pytest.raises((Preempted, SystemExit)):
        trainer(stopped, stop).fit(tiny_module(), TinyImages())
    last = tiny_module()
    goes_on = trainer(stopped)
    goes_on.fit(last, TinyImages(), ckpt_path=path, weights_only=True)
    goes_on.test(last, TinyImages(), verbose=False)
    assert stopped.rows.pop()[0] == 15  # the row of the test
    assert stopped.rows == undisturbed.rows and len(stopped.rows) >= 9


@pytest.mark.parametrize(("accumulate", "looked_at"), [(1, [0, 4, 8]), (2, [1, 9]), (3, [2]), (4, [3])])
def test_several_processes_look_for_a_signal_now_and_then(monkeypatch, accumulate, looked_at):
    """They look after every fourth step, not while gradients accumulate, not before the validation after batch 11."""
    seen, stop, module = [], StopOnSignal(), tiny_module()
    monkeypatch.setattr(stop, "_stop_together", lambda trainer: seen.append(batch))
    for batch in range(12):
        trainer = SimpleNamespace(world_size=2, log_every_n_steps=4, accumulate_grad_batches=accumulate)
        trainer.is_last_batch, trainer.check_val_every_n_epoch, trainer.val_check_batch = batch == 11, 1, 12
        stop.on_train_batch_end(cast(pl.Trainer, trainer), module, None, None, batch)
    assert seen == looked_at
