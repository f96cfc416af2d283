"""A faster training step on a CPU, for N-EM and RNN-EM on binary images.

:class:`FastPath` computes the same loss as the loop in :mod:`nem_lightning.models.em` and
:mod:`nem_lightning.models.losses`, with hand-written gradients. The loop remains the reference.
Why the fast path is faster:

- one matmul gives the weight gradients of all steps, and inputs of several weights are stored side by side;
- log P(x | mu), its softmax over K and equation 5 share terms, and few logarithms are computed;
- buffers are kept and reused, because the first use of new memory costs more than the arithmetic.

The arithmetic is in :mod:`nem_lightning.models.unrolled`, and for each M-step in a module beside that one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import GradientMStep, MStep, RecurrentMStep
from nem_lightning.models.starts import STARTS, bright_regions, noise
from nem_lightning.models.unrolled import Unrolled
from nem_lightning.models.unrolled_nem import UnrolledNEM
from nem_lightning.models.unrolled_rnn_em import UnrolledRNNEM

if TYPE_CHECKING:
    from nem_lightning.models.em import NeuralEM

UNROLLED: dict[type[MStep], type[Unrolled]] = {RecurrentMStep: UnrolledRNNEM, GradientMStep: UnrolledNEM}


class FastLoss(NamedTuple):
    """The loss of a training step, and theta (B, K, D) and the decoder's output (B, K, C, H, W) after the last EM
    step, both without gradients."""

    total: Tensor
    state: Tensor
    params: Tensor


class FastPath:
    """Computes the loss of a batch with its gradients, if :meth:`why_not` gives no reason against it.

    The object holds the buffers, and the last check of the model's structure. Between :meth:`begin` and :meth:`end`
    the structure is checked once an epoch, otherwise at each batch.
    """

    def __init__(self) -> None:
        self._unrolled: Unrolled | None = None
        self._structure: tuple[int, str | None] | None = None  # the epoch of the last check, and its reason
        self._is_training = False
        self._said: set[str] = set()

    def __reduce__(self) -> tuple:
        return FastPath, ()  # a copy gets its own buffers

    def begin(self) -> None:
        """Begin a training, in which the structure changes only between epochs. Forget the reasons already given."""
        self._structure, self._is_training = None, True
        self._said.clear()

    def end(self) -> None:
        """End the training."""
        self._structure, self._is_training = None, False

    def is_news(self, reason: str) -> bool:
        """Say whether a reason is given for the first time since :meth:`begin`."""
        news = reason not in self._said
        self._said.add(reason)
        return news

    def why_not(self, em: "NeuralEM", frames: Tensor, corrupted: Tensor, epoch: int = 0) -> str | None:
        """Give the first reason why the fast path does not apply, to complete "because ..."; None if it applies.

        The fast path applies to N-EM, and to RNN-EM with the plain encoder and decoder, on binary still images of one
        channel on a CPU, with a black prior and lambda = 1, if no part is replaced, hooked or compiled.
        """
        if self._structure is None or not self._is_training or self._structure[0] != epoch:
            self._structure = epoch, _reason_of_structure(em)
        return self._structure[1] or _reason_of_batch(em, frames, corrupted)

    def __call__(
        self,
        em: "NeuralEM",
        image: Tensor,
        corrupted: Tensor,
        *,
        detach: bool,
        generator: torch.Generator | None = None,
    ) -> FastLoss:
        """Give the same as the loop of ``em`` on images (B, 1, H, W) and its loss.

        Args:
            em: the model, with its K and T.
            image: the clean images.
            corrupted: what the M-step sees, (B, F, 1, H, W): one frame, or one for each step.
            detach: whether gradients stop at gamma.
            generator: draws the first responsibilities.
        """
        gamma = em.first_responsibilities(image, em.num_components, generator)  # (B, K, 1, H, W)
        unrolled = UNROLLED[type(em.m_step)]
        sizes = (em.num_steps, em.num_components, len(image), image[0].numel(), em.m_step.state_size)
        memory = self._unrolled
        if memory is None or type(memory) is not unrolled or memory.made_for != (*sizes, image.dtype):
            memory = self._unrolled = unrolled(*sizes, image.dtype)
        weights = unrolled.weights(em.m_step)
        with torch.no_grad():
            total, state, params = memory.forward(em, image, corrupted, gamma, weights)
            needs_gradients = any(weight.requires_grad for weight in weights)
            gradients = memory.backward(detach) if needs_gradients else ()
        return FastLoss(_WithGradients.apply(total, gradients, *weights), state, params.view(gamma.shape))


def _reason_of_structure(em: "NeuralEM") -> str | None:
    """Give the first reason that depends on the model alone, or None."""
    m_step = em.m_step
    unrolled = UNROLLED.get(type(m_step))
    if unrolled is None:
        return f"the M-step is {type(m_step).__name__}"
    if (reason := unrolled.why_not(m_step)) is not None:
        return reason
    if set(map(id, em.parameters())) != set(map(id, unrolled.weights(m_step))):
        return "the model has further weights"
    if STARTS.get(em.init) not in (noise, bright_regions):
        return f"init={em.init} is not known to it"
    if em.iterations_per_step != 1:
        return f"a step has {em.iterations_per_step} iterations"
    if type(em.loss) is not NeuralEMLoss:
        return f"the loss is {type(em.loss).__name__}"
    for part in (em.likelihood, em.loss.likelihood):
        if type(part) is not Bernoulli:
            return f"pixels are {type(part).__name__}"
    if em.image_shape[0] != 1:
        return f"images have {em.image_shape[0]} channels"
    for part in (*em.modules(), em.likelihood, em.loss, em.loss.likelihood):
        if _is_altered(part):
            return f"{type(part).__name__} has hooks, is compiled, or has a replaced method"
    return None


def _reason_of_batch(em: "NeuralEM", frames: Tensor, corrupted: Tensor) -> str | None:
    """Give the first reason that may change from batch to batch, or None; cheap to check."""
    loss, weight = em.loss, next(em.parameters())
    if frames.shape[1] != 1:
        return "frames are sequences"
    if frames.device.type != "cpu" or weight.device.type != "cpu":
        return f"images are on {frames.device.type} and weights on {weight.device.type}: both must be on a CPU"
    if frames.dtype not in (torch.float32, torch.float64) or any(w.dtype != frames.dtype for w in em.parameters()):
        return f"images are {frames.dtype} and weights {weight.dtype}: both must be float32, or both float64"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if not torch.is_grad_enabled():
        return "gradients are off"
    if frames.requires_grad or corrupted.requires_grad:
        return "gradients of the images are asked for"
    if (loss.prior, loss.prior_weight) != (0, 1):
        return f"the prior is {loss.prior} with weight {loss.prior_weight}, not black with weight 1"
    if em.smoothing < 1e-20:
        return f"smoothing is {em.smoothing}"
    if _has_any_global_hook():
        return "PyTorch has global hooks"
    if not torch.equal(frames * frames, frames):
        return "pixels are not all 0 or 1"
    return None


def _is_altered(part: object) -> bool:
    """Say whether a part has hooks, is compiled, or has a method that is not from its class."""
    if any(callable(getattr(type(part), name, None)) for name in vars(part)):
        return True
    if not isinstance(part, nn.Module):
        return False
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or part._compiled_call_impl is not None


class _WithGradients(torch.autograd.Function):
    """A loss with gradients that are already computed.

    Raises:
        RuntimeError: second derivatives are asked for (``create_graph=True``).
    """

    @staticmethod
    def forward(ctx, total: Tensor, gradients: Sequence[Tensor], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.view_as(total)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the fast path has no second derivatives (create_graph=True): set fast=False")
        (d_total,) = grad_outputs
        asked = zip(ctx.gradients, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(gradient * d_total if needed else None for gradient, needed in asked)
