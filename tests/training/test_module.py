import math

import pytest
import pytorch_lightning as pl
import torch
from tiny import SHAPE, TinyImages, tiny_module, tiny_trainer

from nem_lightning.errors import InputError
from nem_lightning.models.corruption import MaskedUniform
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.runs.signals import StopOnSignal
from nem_lightning.scores.collection import reconstruction_error
from nem_lightning.scores.mutual_information import adjusted_mutual_information
from nem_lightning.training.callbacks import StopOnNonFiniteLoss
from nem_lightning.training.module import NeuralEMModule

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

    class Watched(NeuralEMModule):
        def training_loss(self, *arguments):
            seen.append((self.current_epoch, self.em.differentiate_responsibilities))
            return super().training_loss(*arguments)

    def fit(differentiate: bool, epochs: int, **arguments) -> NeuralEMModule:
        seen.clear()
        module = tiny_module(**arguments)
        module.__class__ = Watched
        module.em.differentiate_responsibilities = differentiate  # once it is built, too
        tiny_trainer(tmp_path, max_epochs=epochs, limit_train_batches=2).fit(module, TinyImages())
        return module

    fit(True, 3, detached_epochs=1)
    assert seen == [(0, False)] * 2 + [(1, True)] * 2 + [(2, True)] * 2
    assert fit(True, 1, detached_epochs=2).em.differentiate_responsibilities
    assert seen == [(0, False)] * 2
    fit(True, 1)
    assert seen == [(0, True)] * 2
    assert not fit(False, 1).em.differentiate_responsibilities
    assert seen == [(0, False)] * 2


def test_groups_of_parameters_keep_their_learning_rates(tmp_path):
    """Also in a run that goes on, by its own settings."""

    def module(*rates: float, decay: bool) -> NeuralEMModule:
        def optimizer(parameters) -> torch.optim.Optimizer:
            one, *others = parameters
            return torch.optim.SGD([{"params": [one], "lr": rates[0]}, {"params": others}], lr=rates[1])

        found = tiny_module(decay=decay)
        found.optimizer = optimizer
        return found

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, *arguments) -> None:
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
    class WarmUp(NeuralEMModule):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, 3)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    rates, module = LearningRates(), tiny_module(lr=0.1)
    module.__class__ = WarmUp
    tiny_trainer(tmp_path, callbacks=[rates]).fit(module, TinyImages())
    assert rates.seen == pytest.approx([0.001, 0.034, 0.067, 0.1, 0.1])


def test_a_subclass_may_have_a_forward_of_its_own(tmp_path):
    """What it gives is what is trained, validated and tested, also where there are quicker ways."""

    class Mirrored(NeuralEMModule):
        def forward(self, image, *arguments, **named):
            return super().forward(image.flip(-1), *arguments, **named)

    module, plain, image = tiny_module(), tiny_module(), TinyImages().load("val").images.float()
    module.__class__ = Mirrored
    draws = torch.Generator()
    found = module.training_loss(image, generator=draws.manual_seed(0)).total
    expected = module.loss(image, plain(image.flip(-1), generator=draws.manual_seed(0)))
    assert torch.allclose(found, expected)
    trainer = tiny_trainer(tmp_path)
    score = "reconstruction_error"
    validated = trainer.validate(module, data := TinyImages(batch_size=30), verbose=False)[0][f"val/{score}"]
    assert validated != trainer.validate(plain, data, verbose=False)[0][f"val/{score}"]


def test_nothing_is_logged_where_nothing_is_asked_for(tmp_path):
    trainer = tiny_trainer(tmp_path, log_every_n_steps=0, callbacks=[StopOnNonFiniteLoss(), StopOnSignal()])
    trainer.fit(tiny_module(), TinyImages())
    assert trainer.global_step == 5 and "train/loss" not in trainer.callback_metrics


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


def test_an_optimizer_that_does_not_take_its_settings():
    with pytest.raises(InputError, match="optimizer: Invalid learning rate: -1"):
        tiny_module(lr=-1)


def test_images_that_do_not_fit():
    module, data = tiny_module(), TinyImages()
    module.check_images(data)
    data.binary = False
    with pytest.raises(InputError, match=r"model.em.likelihood: Bernoulli pixels must be 0 or 1.*Gaussian"):
        module.check_images(data)
    module.em.likelihood = module.loss.likelihood = Gaussian()
    with pytest.raises(InputError, match=r"model.corruption: bit flips are for pixels of 0 and 1.*masked_uniform"):
        module.check_images(data)
    module.corruption = MaskedUniform(0.1)
    module.check_images(data)
    module.loss.likelihood = Bernoulli()
    data.binary = True
    with pytest.raises(InputError, match=r"model.loss.likelihood: is Bernoulli, but model.em.likelihood Gaussian"):
        module.check_images(data)
    module.loss.likelihood = Gaussian()
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
