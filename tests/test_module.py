import math

import pytest
import pytorch_lightning as pl
import torch
from tiny import SHAPE, TinyImages, tiny_module, tiny_trainer

from nem_lightning.errors import InputError
from nem_lightning.likelihoods import Gaussian
from nem_lightning.metrics import adjusted_mutual_information
from nem_lightning.module import NeuralEMModule
from nem_lightning.scores import reconstruction_error

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
}


def test_training_logs_what_it_should_and_lowers_the_loss(tmp_path):
    module, data = tiny_module(), TinyImages()
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    before = tiny_trainer(tmp_path).validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    expected = {f"val/{name}" for name in SCORES}
    expected |= {f"train/{name}" for name in ("loss", "loss_intra", "loss_inter", "reconstruction_error")}
    assert expected <= set(trainer.callback_metrics)
    tiny_trainer(tmp_path, max_epochs=10).fit(module, data)
    after = tiny_trainer(tmp_path).validate(module, data, verbose=False)[0]
    assert set(after) == {f"val/{name}" for name in SCORES}
    assert after["val/loss"] < 0.8 * before["val/loss"]


def test_no_gradients_flow_through_responsibilities_in_the_first_epochs(tmp_path):
    seen = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            seen.append((trainer.current_epoch, module.em.differentiate_responsibilities))

    trainer = tiny_trainer(tmp_path, max_epochs=3, limit_train_batches=2, callbacks=[Look()])
    trainer.fit(tiny_module(detached_epochs=1), TinyImages())
    assert seen == [(0, False)] * 2 + [(1, True)] * 2 + [(2, True)] * 2
    seen.clear()
    trainer = tiny_trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[Look()])
    trainer.fit(module := tiny_module(), TinyImages())
    module.em.differentiate_responsibilities = False
    never = NeuralEMModule(module.em, module.loss, module.optimizer, num_components=2, num_steps=3)
    trainer = tiny_trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[Look()])
    trainer.fit(never, TinyImages())
    assert seen == [(0, True), (0, False)]


class LearningRates(pl.Callback):
    def __init__(self) -> None:
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_the_learning_rate_falls_to_nothing_over_the_run_by_its_own_settings(tmp_path):
    """Resumed with another learning rate and length, too."""
    rates, more = LearningRates(), LearningRates()
    trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[rates])
    trainer.fit(tiny_module(lr=1.0, decay=True), TinyImages())  # 5 batches an epoch
    assert rates.seen == pytest.approx([(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)])
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    trainer = tiny_trainer(tmp_path, max_epochs=4, callbacks=[more])
    trainer.fit(tiny_module(lr=3.0, decay=True), TinyImages(), ckpt_path=tmp_path / "here.ckpt")
    assert more.seen == pytest.approx([3 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(10, 20)])


def test_scores_are_means_over_all_images(tmp_path):
    module, data = tiny_module(), TinyImages(batch_size=7)  # the last batch is smaller
    data.setup()
    (logged,) = tiny_trainer(tmp_path).test(module, data, verbose=False)
    images = data.images["test"].__getitems__(range(30))
    labels, errors, confidences, losses = [], [], [], []
    for index, at in enumerate(range(0, 30, 7)):
        image = images["image"][at : at + 7]
        last = module(image, generator=module.generator("test", index))[-1]
        labels.append(last.labels)
        errors.append((image - (last.responsibilities * last.mean).sum(1)).square().flatten(1).mean(1))
        confidences.append(last.responsibilities.amax(1).flatten()[images["groups"][at : at + 7].flatten() != 0])
        losses.append(module.loss.of_step(image, last).total * len(image))
    scores = adjusted_mutual_information(torch.cat(labels), images["groups"], "max")
    assert logged["test/ami_max"] == pytest.approx(scores.nanmean().item(), abs=1e-6)
    assert logged["test/reconstruction_error"] == pytest.approx(torch.cat(errors).mean().item(), abs=1e-6)
    assert logged["test/confidence"] == pytest.approx(torch.cat(confidences).mean().item(), abs=1e-6)
    assert logged["test/loss"] == pytest.approx(sum(losses).item() / 30, rel=1e-5)
    assert logged["test/unscored_images"] == 0
    assert len(module.test_scores_by_step) == 3
    assert module.test_scores_by_step[-1]["ami_max"] == pytest.approx(logged["test/ami_max"], abs=1e-6)


def test_seed_stage_and_step_decide_all_draws():
    def draw(module, *key):
        return torch.rand(3, generator=module.generator(*key))

    module = tiny_module(seed=0)
    assert torch.equal(draw(module, "train", 5), draw(tiny_module(seed=0), "train", 5))
    others = [
        draw(module, "train", 6),
        draw(module, "train", 0, 5),
        draw(module, "val", 5),
        draw(tiny_module(seed=1), "train", 5),
    ]
    assert not any(torch.equal(draw(module, "train", 5), other) for other in others)


def test_noise_is_for_training_only():
    module, data = tiny_module(), TinyImages()
    data.setup()
    batch = data.images["val"].__getitems__(range(8))
    with_noise, module.corruption = module.corruption, None
    module.validation_step(batch, 0)
    clean = module.val_scores.compute()
    module.val_scores.reset()
    module.corruption = with_noise
    module.validation_step(batch, 0)
    assert clean == module.val_scores.compute()


def test_a_reconstruction_error_that_is_not_a_number_is_not_hidden():
    module, data = tiny_module(), TinyImages()
    data.setup()
    module.validation_step(data.images["val"].__getitems__(range(8)), 0)
    module.em.m_step.input_layer.weight.data.fill_(torch.nan)
    module.validation_step(data.images["val"].__getitems__(range(8)), 1)
    assert module.val_scores.compute()["reconstruction_error"].isnan()


@pytest.mark.parametrize("name", ["num_components", "num_steps"])
def test_bad_k_and_t(name):
    with pytest.raises(InputError, match=f"{name}=0: must be an integer of at least 1"):
        tiny_module(**{name: 0})


def test_images_that_do_not_fit():
    module, data = tiny_module(), TinyImages()
    module.check_images(data)
    data.binary = False
    with pytest.raises(InputError, match=r"model.em.likelihood: Bernoulli pixels must be 0 or 1.*Gaussian"):
        module.check_images(data)
    module.em.likelihood = module.loss.likelihood = Gaussian()
    module.check_images(data)
    data.image_shape = (1, 7, 7)
    with pytest.raises(InputError, match=r"images are \(1, 7, 7\) .* this model takes \(1, 6, 5\)"):
        module.check_images(data)
    assert SHAPE == (1, 6, 5)


@pytest.mark.parametrize("fast", [True, False])
def test_what_is_logged_while_training_is_of_the_last_step(fast, monkeypatch):
    module, image = tiny_module(), TinyImages().load("val").images.float()
    if not fast:
        monkeypatch.setattr(module.fast_path, "applies", lambda *_: False)
    loss = module.training_loss(image, generator=torch.Generator().manual_seed(0))
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(module, "log_dict", lambda values: logged.update(values))
    module._log_training(image, loss)
    trajectory = module(image, generator=torch.Generator().manual_seed(0))
    last = module.loss.of_step(image, trajectory[-1])
    expected = {
        "train/loss": module.loss(image, trajectory),
        "train/loss_intra": last.intra,
        "train/loss_inter": last.inter,
        "train/reconstruction_error": reconstruction_error(image, trajectory[-1]),
    }
    assert logged.keys() == expected.keys()
    for name, value in expected.items():
        assert not logged[name].requires_grad and logged[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_validation_scores_the_last_step(tmp_path):
    module, data = tiny_module(), TinyImages(batch_size=30)
    found = tiny_trainer(tmp_path).validate(module, data, verbose=False)[0]
    batch = next(iter(data.val_dataloader()))
    last = module(batch["image"], generator=module.generator("val", 0))[-1]
    assert found["val/loss"] == pytest.approx(module.loss.of_step(batch["image"], last).total.item(), rel=1e-5)
    assert found["val/reconstruction_error"] == pytest.approx(
        reconstruction_error(batch["image"], last).item(), rel=1e-5
    )


@pytest.mark.parametrize("first", ["noise", "seeds"])
def test_a_training_step_reads_nothing_back_from_its_device(first):
    """So a GPU never waits for the program. On PyTorch's meta device every such read is an error."""
    module = tiny_module().to("meta")
    module.em.first = first
    image = torch.empty(4, *module.em.m_step.image_shape, device="meta")
    optimizer = module.optimizer(module.parameters())
    loss = module.training_loss(image, module.corruption(image))
    loss.total.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        loss.total.item()
