import pytest
import torch
from tiny import SHAPE, TinyImages, em_of, m_step_of, scores_of, tiny_model, tiny_module, tiny_trainer

from nem_lightning.errors import InputError
from nem_lightning.models.corruption import BitFlip, MaskedUniform
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.grouping import Grouping, GroupingModel
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.scores.best_overlap import MeanBestOverlap
from nem_lightning.training.module import GroupingModule


def test_no_gradients_flow_through_responsibilities_in_the_first_epochs(tmp_path):
    seen = []

    class Watched(NeuralEM):
        def step(self, iterate, corrupted, target, *, detach=None):
            found = super().step(iterate, corrupted, target, detach=detach)
            if self.training:
                seen.append(found.responsibilities.requires_grad)
            return found

    def fit(differentiate: bool, epochs: int, **of_model) -> NeuralEM:
        seen.clear()
        module = tiny_module(num_steps=1, **of_model)
        em = em_of(module)
        em.__class__ = Watched
        em.differentiate_responsibilities = differentiate  # may also be set after the model is built
        tiny_trainer(tmp_path, max_epochs=epochs, limit_train_batches=2).fit(module, TinyImages())
        return em

    fit(True, 3, detached_epochs=1)
    assert seen == [False] * 2 + [True] * 4
    assert fit(True, 1, detached_epochs=2).differentiate_responsibilities
    assert seen == [False] * 2
    fit(True, 1)
    assert seen == [True] * 2
    assert not fit(False, 1).differentiate_responsibilities
    assert seen == [False] * 2


def test_a_subclass_of_the_model_may_have_a_loop_of_its_own(tmp_path):
    """Training, validation and test use this loop, even if there are quicker ways."""

    class Mirrored(NeuralEM):
        def steps(self, iterate, corrupted, frames, num_steps, *, detach=None):
            return super().steps(iterate, corrupted.flip(-1), frames, num_steps, detach=detach)

    module, plain, data = tiny_module(), tiny_module(), TinyImages(batch_size=30)
    em, plain_em = em_of(module), em_of(plain)
    em.__class__, em.corruption = Mirrored, None
    frames = data.load("val").frames.float()
    draws = torch.Generator()
    found = em.training_loss(frames, generator=draws.manual_seed(0)).total
    start = plain_em.start(frames[:, 0], 2, draws.manual_seed(0))
    mirrored = list(plain_em.steps(start, frames.flip(-1), frames, 3))
    assert torch.allclose(found, plain_em.loss(frames, mirrored))
    trainer = tiny_trainer(tmp_path)
    for stage in ("validate", "test"):
        own, others = (getattr(trainer, stage)(each, data, verbose=False)[0] for each in (module, plain))
        name = next(name for name in own if name.endswith("/reconstruction_error"))
        assert own[name] != others[name]
    last = plain_em.start(frames[:, 0], 2, module.generator("val", 0))
    for _ in range(3):
        last = plain_em.step(last, frames[:, 0].flip(-1), frames[:, 0])
    assert last.reconstruction is not None
    expected = (frames[:, 0] - last.reconstruction).square().mean().item()
    validated = trainer.validate(module, data, verbose=False)[0]["val/reconstruction_error"]
    assert validated == pytest.approx(expected, rel=1e-5)


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
    em = em_of(module)
    data.setup()
    batch = data.stages["val"].__getitems__(range(8))
    with_noise, em.corruption = em.corruption, None
    module.validation_step(batch, 0)
    clean = module.val_set.compute()
    loss = em.training_loss(batch["frames"], generator=torch.Generator().manual_seed(0)).total
    module.val_set.reset()
    em.corruption = with_noise
    module.validation_step(batch, 0)
    assert clean == module.val_set.compute()
    noisy = em.training_loss(batch["frames"], generator=torch.Generator().manual_seed(0)).total
    assert loss != noisy


def test_a_reconstruction_error_that_is_not_a_number_is_not_hidden():
    module, data = tiny_module(), TinyImages()
    data.setup()
    module.validation_step(data.stages["val"].__getitems__(range(8)), 0)
    m_step_of(em_of(module)).input_layer.weight.data.fill_(torch.nan)
    module.validation_step(data.stages["val"].__getitems__(range(8)), 1)
    found = module.val_set.compute()
    assert found["reconstruction_error"].isnan() and found["loss"].isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 0}, "num_components=0: must be an integer of at least 1"),
        ({"num_steps": 0}, "num_steps=0: must be an integer of at least 1"),
        ({"seed": -1}, "seed=-1: must be an integer of at least 0"),
        ({"decay": "no"}, "decay=no: must be true or false"),
        ({"scores": {"loss": MeanBestOverlap()}}, "scores.loss: is a number that NeuralEM reports itself"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny_module(**arguments)


def test_images_that_do_not_fit():
    model = tiny_model()
    model.check_images(SHAPE, True)
    with pytest.raises(InputError, match=r"data: has real values .* takes pixels of 0 and 1.*likelihood.binary=false"):
        model.check_images(SHAPE, False)
    with pytest.raises(InputError, match=r"images are \(1, 7, 7\) .* this model takes \(1, 6, 5\)"):
        model.check_images((1, 7, 7), True)
    real = NeuralEM(RecurrentMStep(SHAPE, 2), Gaussian(), NeuralEMLoss(Gaussian()), BitFlip(0.1))
    real.check_images(SHAPE, True)
    with pytest.raises(InputError, match=r"model.corruption: bit flips are for pixels of 0 and 1.*MaskedUniform"):
        real.check_images(SHAPE, False)
    real.corruption = MaskedUniform(0.1)
    real.check_images(SHAPE, False)
    with pytest.raises(InputError, match=r"loss.likelihood: is Bernoulli, but likelihood Gaussian; must be the same"):
        NeuralEM(RecurrentMStep(SHAPE, 2), Gaussian(), NeuralEMLoss(Bernoulli()))


@pytest.mark.parametrize("init", ["noise", "bright_regions"])
def test_a_training_step_reads_nothing_back_from_its_device(init):
    """So a GPU never waits for the program. On PyTorch's meta device every such read is an error."""
    module = tiny_module(init=init).to("meta")
    frames = torch.empty(4, 1, *SHAPE, device="meta")
    assert module.optimizer is not None
    optimizer = module.optimizer(module.parameters())
    loss = module.model.training_loss(frames)
    loss.total.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        loss.total.item()


def test_each_generator_is_a_new_one():
    """Two generators that are used in turns do not disturb each other."""
    module = tiny_module()
    one, same = module.generator("val", 0), module.generator("val", 0)
    assert one is not same
    first = [torch.rand(2, generator=one), torch.rand(2, generator=same), torch.rand(2, generator=one)]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[2], torch.rand(2, generator=same))


class Halves(GroupingModel):
    """Groups pixels into left and right, without weights and without means."""

    def unroll(self, frames, num_components, num_steps, num_starts, generator):
        batch, _, _, height, width = frames.shape
        gamma = frames.new_zeros(batch, 2, 1, height, width)
        gamma[:, 0, :, :, : width // 2], gamma[:, 1, :, :, width // 2 :] = 1, 1
        yield from [Grouping(gamma)] * num_steps

    def training_loss(self, frames, *, epoch=0, generator=None):
        raise NotImplementedError


def test_a_model_without_weights_and_means_can_be_tested(tmp_path):
    module, data = GroupingModule(Halves(SHAPE, True, 2), {"best_overlap": MeanBestOverlap()}), TinyImages()
    assert not module.has_weights and module.configure_optimizers() is None and tiny_module().has_weights
    (logged,) = tiny_trainer(tmp_path).test(module, data, verbose=False)
    assert logged.keys() == {"test/best_overlap", "test/unscored_images"}
    scores = scores_of(module)
    assert scores.by_step == [{"best_overlap": pytest.approx(logged["test/best_overlap"])}]
    assert scores.headings == {"best_overlap": MeanBestOverlap.heading}
