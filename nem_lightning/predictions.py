"""Group images of your own with a trained model: as arrays, and as files.

Shapes: N images or sequences, F frames, K components, C channels, H by W pixels.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from nem_lightning.colours import colours, grouping_colours, image_pixels
from nem_lightning.datamodules import arrays
from nem_lightning.datamodules.files import FilesDataModule
from nem_lightning.datamodules.pictures import opaque
from nem_lightning.errors import InputError, require, require_count
from nem_lightning.files import atomic_file
from nem_lightning.models.grouping import Grouping, frame_pair
from nem_lightning.models.m_steps import evaluating
from nem_lightning.mosaics import CELL, DPI, LABELS, Mosaic
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule

LAYOUTS = ("HW", "CHW", "HWC", "NHW", "NCHW", "NHWC", "NFHW", "NFCHW", "NFHWC")
SHEET = 24
"""Images on the contact sheet."""


class Groups(NamedTuple):
    """What a model finds in images, after its last step."""

    labels: np.ndarray
    """The component of each pixel, (N, H, W), integers from 1 to K; 0 for the black pixels of black and white images,
    which all components explain alike."""
    responsibilities: np.ndarray
    """gamma, (N, K, H, W) float32; sums to 1 over K."""
    means: np.ndarray | None
    """mu, (N, K, C, H, W) float32; None if the model has no means."""


def group(
    images: Any,
    checkpoint: str | Path,
    *,
    num_components: int | str | None = None,
    num_steps: int | None = None,
    num_starts: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Groups:
    """Group the pixels of images with a trained model.

    Args:
        images: one image, or a list or an array of them: NumPy arrays, PyTorch tensors or PIL images, of the size that
            the model takes. Axes may have any usual order, such as NHWC or NCHW. Pixels are booleans, integers of 8 or
            16 bits, or floats in [0, 1].
        checkpoint: the path of the model, or the name of one of :data:`nem_lightning.shipped.MODELS`.
        num_components: K; as trained by default. "auto": chosen for each image, up to twice as many as trained.
        num_steps: T; as trained by default.
        num_starts: how many starts to choose from; as trained by default.
        seed: of the random numbers.
        batch_size: images at a time.

    Raises:
        InputError: images of another size than the model takes, or with other pixels; or a checkpoint that cannot be
            used.
    """
    require_count("batch_size", batch_size)
    sizes = {"num_components": num_components, "num_steps": num_steps, "num_starts": num_starts}
    module = on_gpu(checkpoints.load_module(checkpoint, seed=seed, sizes=sizes))
    frames = torch.from_numpy(_frames(images, module.model.image_shape, module.model.binary))
    found = [_group(module, index, part) for index, part in enumerate(frames.split(batch_size))]
    return Groups(*(None if parts[0] is None else np.concatenate(parts) for parts in zip(*found, strict=True)))  # pyright: ignore[reportArgumentType]


def on_gpu(module: GroupingModule) -> GroupingModule:
    """Move a module to the CUDA GPU, if there is one."""
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def write(data: FilesDataModule, module: GroupingModule, output: Path) -> Iterator[tuple[int, int]]:
    """Group all images of a data set and write what is found, batch by batch; goes on where an earlier call stopped.

    For each image: ``labels/NAME.png``, whose pixels are the labels of :class:`Groups`, in colours;
    ``overlays/NAME.png``, the image in these colours; ``arrays/NAME.npz`` with ``responsibilities`` (K, H, W) and
    ``means`` (K, C, H, W). Labels and overlays have the size of the image, arrays that of the model. At the end,
    ``contact_sheet.png`` shows the first images. Nothing else is overwritten.

    Args:
        data: prepared.
        module: the model.
        output: the folder.

    Yields:
        How many images are done, and how many there are, after each batch.
    """
    frames, names = data.load("all"), data.names()
    steps, size = module.model.num_steps, data.batch_size
    for batch, start in enumerate(range(0, len(frames), size)):
        indices = range(start, min(start + size, len(frames)))
        missing = [index for index in indices if not (output / "arrays" / f"{names[index]}.npz").exists()]
        if missing:
            found = _group(module, batch, frames.__getitems__(indices)["frames"])
            for index, original in zip(missing, data.originals(missing), strict=True):
                image = frame_pair(torch.tensor(original)[None], steps)[1][0]
                of_image = Groups(*(None if part is None else part[index - start] for part in found))  # pyright: ignore[reportArgumentType]
                _write(output, names[index], image, of_image, module.model.binary)
        yield indices.stop, len(frames)
    _write_sheet(output, names[:SHEET], module.model.image_shape[1:])


def numbers_of_components(output: Path, names: Sequence[str]) -> Counter[int]:
    """Count the images by the number of components that have pixels, in the arrays that :func:`write` wrote."""
    found: Counter[int] = Counter()
    for name in names:
        with np.load(output / "arrays" / f"{name}.npz") as arrays_of_image:
            found[int((arrays_of_image["responsibilities"].max((1, 2)) > 0).sum())] += 1
    return found


@torch.no_grad()
def _group(module: GroupingModule, batch: int, frames: torch.Tensor) -> Groups:
    """Group a batch, with the random numbers that ``evaluate.py`` draws for it."""
    model = module.model
    with evaluating(model):
        last: Grouping
        *_, last = model.groupings(frames.to(module.device), generator=module.generator("test", batch))
    labels = last.labels.cpu() + 1
    if model.binary:
        labels *= (frame_pair(frames, model.num_steps)[1] > 0).any(1)
    gamma = last.responsibilities.squeeze(2).float().cpu().numpy()
    return Groups(labels.numpy(), gamma, None if last.mean is None else last.mean.float().cpu().numpy())


def _frames(images: Any, image_shape: tuple[int, int, int], binary: bool) -> np.ndarray:
    """Give images as frames (N, F, C, H, W), float32 in [0, 1].

    Raises:
        InputError: images of another size, or other pixels than the model takes.
    """
    several = images if isinstance(images, list | tuple) else [images]
    require(len(several) > 0, "images: there are none")
    parts = [_array(image, image_shape[0]) for image in several]
    shapes = {part.shape for part in parts}
    require(len(shapes) == 1, f"images: have shapes {', '.join(map(str, sorted(shapes)))}; must all have one")
    array = np.stack(parts) if isinstance(images, list | tuple) else parts[0]
    channels, height, width = image_shape
    of_letter = {"C": channels, "H": height, "W": width}
    for layout in LAYOUTS:
        fits = len(layout) == array.ndim and ("C" in layout or channels == 1)
        if fits and all(of_letter.get(letter, size) == size for letter, size in zip(layout, array.shape, strict=True)):
            ordered = array if "N" in layout else array[None]
            frames = arrays.in_order(ordered, layout if "N" in layout else f"N{layout}")
            pixels = frames.astype(np.float32) / np.float32(arrays.scale_of(frames, "images"))
            black_or_white = not binary or bool(np.isin(pixels, (0, 1)).all())
            require(black_or_white, "images: have grey pixels; this model takes black and white: compare with a limit")
            return pixels
    raise InputError(
        f"images: have shape {array.shape}; this model takes images of {height}x{width} (height, width) with "
        f"{channels} channel{'s' if channels > 1 else ''}: resize or convert them"
    )


def _array(image: Any, channels: int) -> np.ndarray:
    """Give an array, a tensor or a PIL image as an array. Colours of PIL that are not RGB are converted.

    Pixels of a palette that are transparent are black, as in files.
    """
    if isinstance(image, torch.Tensor):
        return image.detach().cpu().numpy()
    if isinstance(image, Image.Image) and image.mode in ("P", "CMYK", "YCbCr", "HSV", "LAB"):
        image = opaque(image).convert("RGB")  # the only mode that Pillow converts LAB to
        image = image.convert("L") if channels == 1 else image
    return np.asarray(image)


def _write(output: Path, name: str, image: torch.Tensor, found: Groups, binary: bool) -> None:
    """Write what was found in an image, (C, H, W); the arrays last, as they say that the image is done."""
    size = tuple(image.shape[1:])
    labels = found.labels.astype(np.uint8)
    if binary and size != labels.shape:  # a bright pixel that vanished in the small image gets the label of the nearest
        nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
        labels = labels[tuple(nearest)]  # pyright: ignore[reportArgumentType, reportCallIssue]
        labels = _resized(labels, size) * (image > 0.5).any(0).numpy()
    indexed = Image.fromarray(_resized(labels, size))
    palette = np.concatenate([np.zeros((1, 3)), colours(255)]) * 255
    indexed.putpalette(palette.round().astype(np.uint8).tobytes())
    mixed = _resized(grouping_colours(torch.from_numpy(found.responsibilities)), size)
    overlay = 0.5 * image_pixels(image) + 0.5 * mixed
    pictures = {"labels": indexed, "overlays": Image.fromarray((overlay * 255).round().astype(np.uint8))}
    for folder, picture in pictures.items():
        path = output / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            picture.save(file, format="png")
    path = output / "arrays" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"responsibilities": found.responsibilities, "means": found.means}
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **{key: value for key, value in known.items() if value is not None})


def _resized(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize pixels, (h, w) or (h, w, 3), to H by W: each takes the value of the nearest."""
    down, across = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, pixels.shape, strict=False)
    )
    return pixels[down[:, None], across]


def _write_sheet(output: Path, names: Sequence[str], size: tuple[int, int]) -> None:
    """Draw the first overlays and labels, in rows of twelve, all in the shape of the model's images."""
    rows = [names[start : start + 12] for start in range(0, len(names), 12)]
    scale = max(1, round(CELL / max(size)))
    shape = size[0] * scale, size[1] * scale
    mosaic = Mosaic(2 * len(rows), len(rows[0]), shape, LABELS)
    for index, row in enumerate(rows):
        for offset, (folder, text) in enumerate((("overlays", "overlay"), ("labels", "labels"))):
            mosaic.label(2 * index + offset, 0, text)
            for column, name in enumerate(row):
                with Image.open(output / folder / f"{name}.png") as image:
                    mosaic.show(2 * index + offset, column, _resized(np.asarray(image.convert("RGB")), shape) / 255)
    with atomic_file(output / "contact_sheet.png") as file:
        mosaic.figure().savefig(file, format="png", dpi=DPI)
