"""What a run logs: in training, in validation and in a test."""

import pytest
import torch
from tiny import TinyImages, TinySequences, em_of, scores_of, tiny_module, tiny_trainer

from nem_lightning.runs.signals import StopOnSignal
from nem_lightning.scores.mutual_information import adjusted_mutual_information
from nem_lightning.training.callbacks import StopOnNonFiniteLoss

SCORES = {
    "ami_max",
    "ami_arithmetic",
    "ari",
    "loss",
    "loss_intra",
    "loss_inter",
    "reconstruction_error",
    "confidence",
    "log_likelihood",
    "upper_bound",
}


def test_training_logs_what_it_should_and_lowers_the_loss(tmp_path):
    module, data = tiny_module(), TinyImages()
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    before = tiny_trainer(tmp_path).validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    expected = {f"val/{name}" for name in SCORES}
    of_training = ("loss", "loss_intra", "loss_inter", "log_likelihood", "upper_bound", "reconstruction_error")
    expected |= {f"train/{name}" for name in of_training}
    assert expected <= set(trainer.callback_metrics)
    tiny_trainer(tmp_path, max_epochs=10).fit(module, data)
    after = tiny_trainer(tmp_path).validate(module, data, verbose=False)[0]
    assert set(after) == {f"val/{name}" for name in SCORES}
    assert after["val/loss"] < 0.8 * before["val/loss"]


def test_nothing_is_logged_where_nothing_is_asked_for(tmp_path):
    trainer = tiny_trainer(tmp_path, log_every_n_steps=0, callbacks=[StopOnNonFiniteLoss(), StopOnSignal()])
    trainer.fit(tiny_module(), TinyImages())
    assert trainer.global_step == 5 and "train/loss" not in trainer.callback_metrics


def test_scores_are_means_over_all_images(tmp_path):
    module, data = tiny_module(), TinyImages(batch_size=7)  # the last batch is smaller
    data.setup()
    (logged,) = tiny_trainer(tmp_path).test(module, data, verbose=False)
    images = data.stages["test"].__getitems__(range(30))
    groups = images["groups"][:, 0]
    labels, errors, confidences, losses = [], [], [], []
    for index, at in enumerate(range(0, 30, 7)):
        frames = images["frames"][at : at + 7]
        image, last = frames[:, 0], module.model(frames, generator=module.generator("test", index))[-1]
        labels.append(last.labels)
        errors.append((image - (last.responsibilities * last.mean).sum(1)).square().flatten(1).mean(1))
        confidences.append(last.responsibilities.amax(1).flatten()[groups[at : at + 7].flatten() != 0])
        losses.append(em_of(module).loss.of_step(image, last).total * len(image))
    scores = adjusted_mutual_information(torch.cat(labels), groups, "max")
    assert logged["test/ami_max"] == pytest.approx(scores.nanmean().item(), abs=1e-6)
    assert logged["test/reconstruction_error"] == pytest.approx(torch.cat(errors).mean().item(), abs=1e-6)
    assert logged["test/confidence"] == pytest.approx(torch.cat(confidences).mean().item(), abs=1e-6)
    assert logged["test/loss"] == pytest.approx(torch.stack(losses).sum().item() / 30, rel=1e-5)
    assert logged["test/unscored_images"] == 0
    found = scores_of(module)
    assert len(found.by_step) == 3 and (found.num_images, found.unscored_images) == (30, 0)
    assert found.by_step[-1]["ami_max"] == pytest.approx(logged["test/ami_max"], abs=1e-6)
    assert found.by_step[-1].keys() == found.headings.keys() == SCORES


@pytest.mark.parametrize("data", [TinyImages, TinySequences])
@pytest.mark.parametrize("fast", ["auto", False])
def test_what_is_logged_while_training_is_of_the_last_step(data, fast, monkeypatch):
    module, frames = tiny_module(fast=fast), data().load("val").frames.float()
    em = em_of(module)
    em.corruption = None
    loss = em.training_loss(frames, generator=torch.Generator().manual_seed(0))
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    module._log_training(frames, loss)
    trajectory, target = em(frames, generator=torch.Generator().manual_seed(0)), frames[:, -1]
    last = em.loss.of_step(target, trajectory[-1])
    expected = {
        "train/loss": em.loss(frames, trajectory),
        "train/loss_intra": last.intra,
        "train/loss_inter": last.inter,
        "train/log_likelihood": em.log_likelihood(target, trajectory[-1].params).mean(),
        "train/upper_bound": -em.likelihood.log_prob(target[:, None], trajectory[-1].params).max(1)[0].sum()
        / len(target),
        "train/reconstruction_error": (target - trajectory[-1].reconstruction).square().mean(),
    }
    assert logged.keys() == expected.keys() <= set(module.logged_names)
    for name, value in expected.items():
        assert not logged[name].requires_grad and logged[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_everything_that_is_logged_is_announced(tmp_path):
    module, trainer = tiny_module(), tiny_trainer(tmp_path)
    trainer.fit(module, TinyImages())
    assert {name for name in trainer.callback_metrics if "/" in name} == set(module.logged_names)


@pytest.mark.parametrize("data", [TinyImages, TinySequences])
def test_validation_scores_the_last_step(tmp_path, data):
    """Validation has one start, even if a test has more. A sequence is scored on its last frame and its groups."""
    module, data = tiny_module(num_starts=3), data(batch_size=30)
    found = tiny_trainer(tmp_path).validate(module, data, verbose=False)[0]
    batch = next(iter(data.val_dataloader()))
    last = module.model(batch["frames"], num_starts=1, generator=module.generator("val", 0))[-1]
    target, groups = batch["frames"][:, -1], batch["groups"][:, -1]
    expected = {
        "loss": em_of(module).loss.of_step(target, last).total,
        "reconstruction_error": (target - last.reconstruction).square().mean(),
        "ami_max": adjusted_mutual_information(last.labels, groups).nanmean(),
    }
    for name, value in expected.items():
        assert found[f"val/{name}"] == pytest.approx(value.item(), rel=1e-5), name


def test_there_are_no_scores_before_a_test(tmp_path):
    module = tiny_module()
    assert module.test_scores is None
    tiny_trainer(tmp_path).fit(module, TinyImages())
    assert module.test_scores is None
