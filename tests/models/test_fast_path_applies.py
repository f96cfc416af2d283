"""Which cases the fast path takes. It leaves all others to the loop, and says why."""

import copy
import logging
import re

import pytest
import torch
from small_models import SHAPE, binary, fast_model
from tiny import m_step_of
from torch import nn

from nem_lightning.errors import InputError
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.fast_path import FastPath
from nem_lightning.models.likelihoods import Gaussian
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import GradientMStep
from nem_lightning.models.starts import STARTS, bright_regions


class OwnLinear(nn.Linear):
    pass


class OwnMStep(GradientMStep):
    pass


class OwnLoss(NeuralEMLoss):
    pass


class OwnEM(NeuralEM):
    pass


def why_not(em: NeuralEM, frames: torch.Tensor, corrupted: torch.Tensor | None = None) -> str | None:
    return FastPath().why_not(em, frames, frames if corrupted is None else corrupted)


def change(kind: str) -> tuple[NeuralEM, torch.Tensor]:
    """Give a model and frames with one property that the fast path does not support."""
    em, frames = fast_model(), binary(2, 1, *SHAPE)
    m_step = m_step_of(em)
    match kind:
        case "M-step":
            em.m_step = OwnMStep(SHAPE, 6).double()
        case "weights":
            em.m_step = GradientMStep(SHAPE, 6).double()
            em.m_step.bias = nn.Parameter(torch.zeros(20).double())
        case "activation":
            m_step.activation = "tanh"
        case "encoder":
            m_step.encoder = nn.Sequential(nn.Flatten(), nn.Identity())
        case "decoder":
            assert isinstance(m_step.decoder, nn.Sequential)
            m_step.decoder[0] = OwnLinear(6, 20).double()
        case "layer":
            m_step.input_layer = OwnLinear(20, 6).double()
        case "norm":
            m_step.norm = nn.RMSNorm(6).double()
        case "norm without weights":
            m_step.norm = nn.LayerNorm(6, elementwise_affine=False)
        case "no bias":
            m_step.input_layer = nn.Linear(20, 6, bias=False).double()
        case "bias elsewhere":
            m_step.recurrent_layer.bias = m_step.input_layer.bias
            m_step.input_layer.register_parameter("bias", None)
        case "step size by pixel":
            em.m_step = GradientMStep(SHAPE, 6).double()
            em.m_step.step_size = nn.Parameter(torch.ones(20).double())
        case "learned smoothing":
            learned = nn.Parameter(torch.tensor(1e-6).double())
            em.smoothing = learned  # pyright: ignore[reportAttributeAccessIssue]  # on purpose
        case "step" | "start" | "steps" | "unroll" | "explain" | "e_step" | "first_responsibilities":
            setattr(em, kind, lambda *arguments, **named: None)
        case "prob":
            setattr(em.likelihood, kind, lambda *arguments: None)
        case "of_step":
            setattr(em.loss, kind, lambda *arguments: None)
        case "hook":
            m_step.decoder.register_forward_hook(lambda *arguments: None)
        case "compiled":
            em.m_step.compile()
        case "likelihood":
            em.likelihood = Gaussian()
        case "loss likelihood":
            em.loss.likelihood = Gaussian()
        case "loss":
            em.loss = OwnLoss(em.likelihood)
        case "three channels":
            em.image_shape = (3, *SHAPE[1:])
        case "prior":
            em.loss.prior = 0.1
        case "prior weight":
            em.loss.prior_weight = 2.0
        case "smoothing":
            em.smoothing = 0.0
        case "grey image":
            frames = frames / 2
        case "single precision image":
            frames = frames.float()
        case "half precision":
            em, frames = em.half(), frames.half()
        case "sequence":
            frames = frames.expand(-1, 11, -1, -1, -1)
        case "GPU":
            frames = torch.empty(frames.shape, dtype=frames.dtype, device="meta")
        case "weights on a GPU":
            em = em.to("meta")
    return em, frames


FURTHER = "the model has further weights"
REASONS = {
    "M-step": "the M-step is OwnMStep",
    "weights": FURTHER,
    "activation": "the units are tanh, not sigmoid",
    "encoder": "the encoder is Sequential",
    "decoder": "the decoder is not the plain linear layer",
    "layer": "a layer of the M-step was replaced",
    "norm": "a layer of the M-step was replaced",
    "norm without weights": FURTHER,
    "no bias": FURTHER,
    "bias elsewhere": FURTHER,
    "step size by pixel": "the step size is neither one number nor one for each unit",
    "learned smoothing": FURTHER,
    **dict.fromkeys(
        ("step", "start", "steps", "unroll", "explain", "e_step", "first_responsibilities"),
        "NeuralEM has hooks, is compiled, or has a replaced method",
    ),
    "prob": "Bernoulli has hooks, is compiled, or has a replaced method",
    "of_step": "NeuralEMLoss has hooks, is compiled, or has a replaced method",
    "hook": "Sequential has hooks, is compiled, or has a replaced method",
    "compiled": "RecurrentMStep has hooks, is compiled, or has a replaced method",
    "likelihood": "pixels are Gaussian",
    "loss likelihood": "pixels are Gaussian",
    "loss": "the loss is OwnLoss",
    "three channels": "images have 3 channels",
    "prior": "the prior is 0.1 with weight 1.0, not black with weight 1",
    "prior weight": "the prior is 0.0 with weight 2.0, not black with weight 1",
    "smoothing": "smoothing is 0.0",
    "grey image": "pixels are not all 0 or 1",
    "single precision image": (
        "images are torch.float32 and weights torch.float64: both must be float32, or both float64"
    ),
    "half precision": "images are torch.float16 and weights torch.float16: both must be float32, or both float64",
    "sequence": "frames are sequences",
    "GPU": "images are on meta and weights on cpu: both must be on a CPU",
    "weights on a GPU": "images are on cpu and weights on meta: both must be on a CPU",
}


@pytest.mark.parametrize("kind", REASONS)
def test_it_leaves_other_cases_to_the_loop_and_says_why(kind):
    assert why_not(*change("nothing")) is None
    assert why_not(*change(kind)) == REASONS[kind]


def test_it_leaves_gradients_of_images_and_of_noise_to_the_loop():
    em, frames = change("nothing")
    reason = "gradients of the images are asked for"
    assert why_not(em, frames, frames.clone().requires_grad_()) == reason
    assert why_not(em, frames.clone().requires_grad_()) == reason


def test_it_leaves_no_grad_and_autocast_to_the_loop():
    case = change("nothing")
    with torch.no_grad():
        assert why_not(*case) == "gradients are off"
    with torch.autocast("cpu"):
        assert why_not(*case) == "autocast is on"


def test_it_leaves_a_first_gamma_of_ones_own_to_the_loop(monkeypatch):
    """Such a gamma may be learned."""
    case = change("nothing")
    monkeypatch.setitem(STARTS, "noise", lambda *arguments: bright_regions(*arguments))
    assert why_not(*case) == "init=noise is not known to it"


def test_it_leaves_global_hooks_to_the_loop():
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        assert why_not(*change("nothing")) == "PyTorch has global hooks"
    finally:
        handle.remove()
    assert why_not(*change("nothing")) is None


def test_a_subclass_goes_by_the_loop():
    em, frames = change("nothing")
    em.__class__, em.fast = OwnEM, True
    with pytest.raises(InputError, match="fast=true: the fast path does not apply, because the model is a subclass of"):
        em.training_loss(frames)


def test_the_structure_is_looked_at_once_an_epoch_of_training_and_at_each_batch_otherwise():
    em, frames = change("nothing")

    def why_not(epoch: int = 0) -> str | None:
        return em.fast_path.why_not(em, frames, frames, epoch)

    m_step = m_step_of(em)
    for m_step.activation, reason in (("sigmoid", None), ("tanh", REASONS["activation"]), ("sigmoid", None)):
        assert why_not() == reason  # outside training
    em.prepare_training()
    assert why_not() is None
    m_step.activation = "tanh"
    assert why_not() is None  # until the next epoch
    assert why_not(1) == REASONS["activation"]
    em.prepare_training()
    assert why_not(1) == REASONS["activation"]
    em.finish_training()
    m_step.activation = "sigmoid"
    assert why_not(1) is None


def test_a_copy_looks_for_itself():
    em, frames = change("nothing")
    em.training_loss(frames)
    other = copy.deepcopy(em)
    m_step_of(other).activation = "tanh"
    assert other.fast_path.why_not(other, frames, frames) == REASONS["activation"]


def counted(em: NeuralEM, monkeypatch) -> list[str]:
    """Record for each loss from now on whether the fast path or the loop computes it."""
    ways = []
    fast, loop = FastPath.__call__, NeuralEMLoss.__call__
    monkeypatch.setattr(FastPath, "__call__", lambda *a, **k: ways.append("fast path") or fast(*a, **k))
    monkeypatch.setattr(NeuralEMLoss, "__call__", lambda *a: ways.append("loop") or loop(*a))
    return ways


def test_it_is_taken_as_the_setting_says(monkeypatch):
    em, frames = change("nothing")
    ways = counted(em, monkeypatch)
    for em.fast in ("auto", True, False):
        em.training_loss(frames)
    assert ways == ["fast path", "fast path", "loop"]


@pytest.mark.parametrize("kind", ["activation", "prior", "sequence"])
def test_fast_true_raises_the_reason_and_auto_logs_it_once(kind, monkeypatch, caplog):
    em, frames = change(kind)
    ways = counted(em, monkeypatch)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            em.training_loss(frames)
    said = f"training takes the loop, not the fast path, because {REASONS[kind]}"
    assert ways == ["loop", "loop"] and caplog.messages == [said]
    em.prepare_training()
    with caplog.at_level(logging.INFO):
        em.training_loss(frames)
    assert caplog.messages == [said, said]
    em.fast = True
    with pytest.raises(
        InputError, match=f"fast=true: the fast path does not apply, because {re.escape(REASONS[kind])}"
    ):
        em.training_loss(frames)
