"""The interface of every grouping model. All other code uses models only through it.

Shapes: B images, F frames, K components, T steps, C channels, H by W pixels.

A still image has one frame, F = 1, which is shown at every step. In a sequence, step t sees frame t and explains
frame t + 1, so T steps need T + 1 frames.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from nem_lightning.errors import InputError, require, require_count, require_flag
from nem_lightning.headings import Heading


@dataclass(frozen=True)
class Grouping:
    """How a model groups the pixels of a batch of images, after one step."""

    responsibilities: Tensor
    """gamma, (B, K, 1, H, W); sums to 1 over K."""
    mean: Tensor | None = None
    """mu, (B, K, C, H, W); None if the model has no means."""

    @property
    def labels(self) -> Tensor:
        """The component with the largest responsibility for each pixel, (B, H, W), integers 0 to K-1."""
        return self.responsibilities.squeeze(2).argmax(1)

    @property
    def reconstruction(self) -> Tensor | None:
        """sum_k gamma_k mu_k, (B, C, H, W); None if the model has no means."""
        return None if self.mean is None else (self.responsibilities * self.mean).sum(1)

    def to(self, device: torch.device | str) -> Self:
        """Move all tensors to a device."""
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def where(self, mask: Tensor, other: Self) -> Self:
        """Take this grouping for images with ``mask``, (B,) boolean, True, and ``other`` for the rest."""
        pairs = {name: (value, getattr(other, name)) for name, value in self._tensors().items()}
        chosen = {
            name: torch.where(mask.view(-1, *[1] * (one.dim() - 1)), one, two) for name, (one, two) in pairs.items()
        }
        return replace(self, **chosen)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class TrainingLoss(NamedTuple):
    """The result of one training step."""

    total: Tensor
    """The loss to minimise, a scalar."""
    last: Callable[[], Grouping]
    """Gives the grouping after the last step. It is called only on training steps that are logged."""


class GroupingModel(nn.Module, abc.ABC):
    """A model that groups the pixels of images into objects.

    A subclass implements :meth:`unroll` and :meth:`training_loss`. Training, evaluation, figures, the report and the
    results use only what this class declares.

    Args:
        image_shape: (C, H, W) of the images that the model takes.
        binary: whether its pixels must be 0 or 1; real values in [0, 1] otherwise.
        num_components: K, at least 1.
        num_steps: T, at least 1.
        num_starts: how many times the model starts in tests and pictures, at least 1; the best start is kept for each
            image. Training and validation start once.

    Raises:
        InputError: a shape that is not (C, H, W), or a number below 1.
    """

    headings: ClassVar[Mapping[str, Heading]] = {}
    """Titles and formats of the numbers that :meth:`report` gives."""
    stills_only: ClassVar[bool] = False
    """Whether the model takes still images only, and no sequences."""

    def __init__(
        self,
        image_shape: Sequence[int],
        binary: bool,
        num_components: int = 3,
        num_steps: int = 1,
        num_starts: int = 1,
    ) -> None:
        super().__init__()
        require_flag("binary", binary)
        require_count("num_components", num_components)
        require_count("num_steps", num_steps)
        require_count("num_starts", num_starts)
        self.image_shape = checked_shape(image_shape)
        self.binary = binary
        self.num_components = num_components
        self.num_steps = num_steps
        self.num_starts = num_starts
        self.choose_up_to: int | None = None
        """If a number, K is chosen for each image, from 1 to it, when :meth:`groupings` is given no number."""

    @abc.abstractmethod
    def unroll(
        self,
        frames: Tensor,
        num_components: int,
        num_steps: int,
        num_starts: int,
        generator: torch.Generator | None,
    ) -> Iterator[Grouping]:
        """Yield a grouping after each of ``num_steps`` steps. :meth:`groupings` has checked the arguments.

        A model that needs no start may ignore ``num_starts``, and one that draws nothing may ignore ``generator``.

        Args:
            frames: (B, F, C, H, W).
            num_components: K.
            num_steps: T.
            num_starts: how many starts to choose from.
            generator: draws all random numbers; PyTorch's own generator if None.
        """

    def unroll_choosing(
        self, frames: Tensor, most: int, num_steps: int, num_starts: int, generator: torch.Generator | None
    ) -> Iterator[Grouping]:
        """Yield groupings of ``most`` components, of which each image uses as many as it needs. Optional.

        Raises:
            InputError: the model cannot choose.
        """
        raise InputError(f"num_components=auto: {type(self).__name__} cannot choose; give a number")

    @abc.abstractmethod
    def training_loss(
        self, frames: Tensor, *, epoch: int = 0, generator: torch.Generator | None = None
    ) -> TrainingLoss:
        """Give the loss of a batch, which training minimises.

        Args:
            frames: (B, F, C, H, W).
            epoch: how many epochs were trained before this one.
            generator: draws all random numbers.
        """

    def groupings(
        self,
        frames: Tensor,
        *,
        num_components: int | None = None,
        num_steps: int | None = None,
        num_starts: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Grouping]:
        """Group the pixels of a batch, step by step. Lazy: drop earlier groupings to save memory.

        Args:
            frames: (B, F, C, H, W); F is 1 for still images, and at least T + 1 for sequences.
            num_components: K; by default the model's own, or chosen for each image if ``choose_up_to`` says so.
            num_steps: T; the model's own by default.
            num_starts: how many starts to choose from; the model's own by default.
            generator: draws all random numbers; PyTorch's own generator by default.

        Returns:
            The groupings after steps 1 to T, one by one.

        Raises:
            InputError: frames of another shape, too few frames, or a number below 1.
        """
        choose = self.choose_up_to if num_components is None else None
        num_components = self.num_components if num_components is None else num_components
        num_steps = self.num_steps if num_steps is None else num_steps
        num_starts = self.num_starts if num_starts is None else num_starts
        require_count("num_components", num_components)
        require_count("num_steps", num_steps)
        require_count("num_starts", num_starts)
        self.check_frames(frames, num_steps)
        if choose is not None:
            return self.unroll_choosing(frames, choose, num_steps, num_starts, generator)
        return self.unroll(frames, num_components, num_steps, num_starts, generator)

    def forward(self, frames: Tensor, **named: Any) -> list[Grouping]:
        """Give all groupings of :meth:`groupings`, which has the same arguments, as a list."""
        return list(self.groupings(frames, **named))

    def report(self, target: Tensor, grouping: Grouping) -> dict[str, Tensor]:
        """Give further numbers about a grouping, each with a heading in :attr:`headings`; none by default.

        Args:
            target: (B, C, H, W), the frame that the grouping explains.
            grouping: after one step.

        Returns:
            Scalars by name, means over the batch.
        """
        return {}

    def prepare_training(self, compiled: bool = False) -> None:
        """Get ready to train; called once before each training. Does nothing by default.

        Args:
            compiled: whether to compile the parts that gain from it, because the user asked for
                ``Trainer.fit(torch.compile(module))``.
        """

    def finish_training(self) -> None:
        """Undo what :meth:`prepare_training` did that is only for training. Does nothing by default."""

    def check_images(self, image_shape: Sequence[int], binary: bool) -> None:
        """Raise :class:`~nem_lightning.errors.InputError` if the model cannot take these images.

        Args:
            image_shape: (C, H, W) of the images.
            binary: whether their pixels are 0 or 1.
        """
        given = tuple(image_shape)
        require(
            given == self.image_shape,
            f"data: images are {given} (channels, height, width), but this model takes {self.image_shape}; choose the "
            "data it was built for, or its size",
        )
        require(
            binary or not self.binary,
            "data: has real values in [0, 1], but this model takes pixels of 0 and 1; choose a model for real pixels "
            "(of N-EM and RNN-EM: model.likelihood.binary=false)",
        )

    def check_frames(self, frames: Tensor, num_steps: int) -> None:
        """Raise :class:`~nem_lightning.errors.InputError` unless ``frames`` fit the model and T steps."""
        shape = tuple(frames.shape)
        require(
            len(shape) == 5 and shape[2:] == self.image_shape,
            f"frames have shape {shape}: must be (batch, frames, *{self.image_shape})",
        )
        weight = next(self.parameters(), frames)
        require(
            frames.is_floating_point() and frames.device == weight.device,
            f"frames are {frames.dtype} on {frames.device}: must be floating-point, on {weight.device} as the model",
        )
        require(
            shape[1] == 1 or not self.stills_only,
            f"frames: {shape[1]} a sequence; {type(self).__name__} takes still images only",
        )
        require(
            shape[1] == 1 or shape[1] > num_steps,
            f"frames: {shape[1]} a sequence; must be 1 (still images) or at least {num_steps + 1} for "
            f"num_steps={num_steps}",
        )


def frame_pair(frames: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Give the frame that a step sees and the one that it explains: (B, F, C, H, W) -> twice (B, C, H, W).

    Args:
        frames: still images or sequences.
        step: from 1 to T.
    """
    if frames.shape[1] == 1:
        return frames[:, 0], frames[:, 0]
    return frames[:, step - 1], frames[:, step]


def groups_of_step(groups: Tensor, step: int) -> Tensor:
    """Give the true groups of the frame that a step explains: (B, F, H, W) -> (B, H, W)."""
    return groups[:, 0 if groups.shape[1] == 1 else step]


def checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Give (C, H, W) as a tuple.

    Raises:
        InputError: not three integers of at least 1.
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(size, Integral) and size >= 1 for size in shape):
        raise InputError(f"image_shape={list(shape)}: must be [channels, height, width], each at least 1")
    return int(shape[0]), int(shape[1]), int(shape[2])
