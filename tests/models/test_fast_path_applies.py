"""Which cases the fast path takes, and that it leaves all others to the loop."""

import pytest
import torch
from test_fast_path import SHAPE, binary, model
from torch import nn

from nem_lightning.models.fast_path import FastPath
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import GradientMStep
from nem_lightning.models.starts import STARTS, seeds


class OwnLinear(nn.Linear):
    pass


class OwnMStep(GradientMStep):
    pass


def change(kind: str):
    """A model, loss and image that the fast path is not written for, in one respect."""
    em, loss, image = model(), NeuralEMLoss(Bernoulli()), binary(2, *SHAPE)
    match kind:
        case "M-step":
            em.m_step = OwnMStep(SHAPE, 6).double()
        case "weights":
            em.m_step = GradientMStep(SHAPE, 6).double()
            em.m_step.bias = nn.Parameter(torch.zeros(20).double())
        case "activation":
            em.m_step.activation = "tanh"
        case "encoder":
            em.m_step.encoder = nn.Sequential(nn.Flatten(), nn.Identity())
        case "decoder":
            em.m_step.decoder[0] = OwnLinear(6, 20).double()
        case "norm":
            em.m_step.norm = nn.RMSNorm(6).double()
        case "norm without weights":
            em.m_step.norm = nn.LayerNorm(6, elementwise_affine=False)
        case "no bias":
            em.m_step.input_layer = nn.Linear(20, 6, bias=False).double()
        case "bias elsewhere":
            em.m_step.recurrent_layer.bias, em.m_step.input_layer.bias = em.m_step.input_layer.bias, None
        case "step size by unit":
            em.m_step = GradientMStep(SHAPE, 6).double()
            em.m_step.step_size = nn.Parameter(torch.ones(6).double())
        case "learned smoothing":
            em.smoothing = nn.Parameter(torch.tensor(1e-6).double())
        case "step" | "start" | "iterates" | "first_responsibilities":
            setattr(em, kind, lambda *arguments, **named: None)
        case "prob":
            em.likelihood.prob = lambda *arguments: None
        case "of_step":
            loss.of_step = lambda *arguments: None
        case "hook":
            em.m_step.decoder.register_forward_hook(lambda *arguments: None)
        case "compiled":
            em.m_step.compile()
        case "likelihood":
            em.likelihood = Gaussian()
        case "loss likelihood":
            loss.likelihood = Gaussian()
        case "prior":
            loss.prior = 0.1
        case "prior weight":
            loss.prior_weight = 2.0
        case "smoothing":
            em.smoothing = 0.0
        case "grey image":
            image = image / 2
        case "single precision image":
            image = image.float()
        case "other image size":
            image = binary(2, 1, 5, 4)
    return em, loss, image


KINDS = ["M-step", "weights", "activation", "encoder", "decoder", "norm", "norm without weights", "no bias"]
KINDS += ["bias elsewhere", "step size by unit", "learned smoothing", "smoothing", "prior", "prior weight"]
KINDS += ["step", "start", "iterates", "first_responsibilities", "prob", "of_step", "hook", "compiled"]
KINDS += ["likelihood", "loss likelihood", "grey image", "single precision image", "other image size"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_leaves_other_cases_to_the_loop(kind):
    assert FastPath.applies(*change("nothing"))
    assert not FastPath.applies(*change(kind))


def test_it_leaves_learned_noise_and_half_precision_to_the_loop():
    em, loss, image = change("nothing")
    assert FastPath.applies(em, loss, image, image)
    assert not FastPath.applies(em, loss, image, image.clone().requires_grad_())
    assert not FastPath.applies(em.half(), loss, image.half())


def test_it_leaves_no_grad_and_autocast_to_the_loop():
    case = change("nothing")
    with torch.no_grad():
        assert not FastPath.applies(*case)
    with torch.autocast("cpu"):
        assert not FastPath.applies(*case)


def test_it_leaves_a_first_gamma_of_ones_own_to_the_loop(monkeypatch):
    """It may be learned."""
    case = change("nothing")
    monkeypatch.setitem(STARTS, "noise", lambda *arguments: seeds(*arguments))
    assert not FastPath.applies(*case)


def test_it_leaves_global_hooks_to_the_loop():
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        assert not FastPath.applies(*change("nothing"))
    finally:
        handle.remove()
    assert FastPath.applies(*change("nothing"))
