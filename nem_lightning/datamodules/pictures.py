"""Image files of a folder: which there are, and what is in them."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from nem_lightning.errors import InputError, require

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
SUFFIXES_OF_MASKS = (".png", ".tif", ".tiff", ".bmp")
"""Formats that keep each label as it is."""
LARGEST = 50_000_000
"""Pixels of an image; a file that says it has more is refused before it is decoded."""
LIES = 5
"""From this orientation on, an EXIF header says that height and width are exchanged."""
GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
"""PIL's modes of one channel."""
NAMES_OF_MASKS = ("_mask", ".mask", "-mask")
"""What follows the name of an image in the name of its mask, if the masks lie beside the images."""


class Header(NamedTuple):
    """What a file says of its image."""

    height: int
    width: int
    channels: int
    is_deep: bool
    """Whether pixels have more than 8 bits."""


def find(folder: Path) -> list[Path]:
    """Give the image files in a folder and the folders in it, in the order of their names; hidden ones are left out.

    Raises:
        InputError: there are none.
    """
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    kinds = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
    require(bool(found), f"{folder}: has no images in it; allowed are files of {kinds}")
    return sorted(found)


def is_mask(path: Path) -> bool:
    """Say whether a file beside images is a mask by its name, such as ``7_mask.png``."""
    return path.stem.endswith(NAMES_OF_MASKS)


def mask_of(path: Path, folder: Path, masks: Path | None) -> Path | None:
    """Give the mask of an image: the file of the same name in the folder of masks, or ``NAME_mask`` beside the image.

    Args:
        path: of the image.
        folder: of the images.
        masks: the folder of masks; None if masks lie beside the images.
    """
    if masks is None:
        candidates = [path.with_name(f"{path.stem}{name}") for name in NAMES_OF_MASKS]
    else:
        candidates = [masks / path.relative_to(folder).with_suffix("")]
    suffixes = [each for suffix in SUFFIXES_OF_MASKS for each in (suffix, suffix.upper())]
    files = (Path(f"{candidate}{suffix}") for candidate in candidates for suffix in suffixes)
    return next((file for file in files if file.is_file()), None)


def header(path: Path) -> Header:
    """Read the size of an image as it is shown, and whether its file can hold colours.

    Raises:
        InputError: no image, an animated one, or one of too many pixels.
    """
    with _opened(path) as image, _named(path):
        height, width = (image.width, image.height) if _orientation(image) >= LIES else (image.height, image.width)
        return Header(height, width, 1 if _is_grey(image) else 3, image.mode[0] in "IF")


def read(path: Path, channels: int, size: tuple[int, int] | None = None, must_be_grey: bool = False) -> np.ndarray:
    """Read an image as it is shown: (C, H, W) float32 in [0, 1].

    The image is turned as its EXIF header says. It lies on black: transparent pixels are black.

    Args:
        path: of the file.
        channels: 1 or 3; colours become grey, or grey becomes colours.
        size: height and width; an image of another size is resized, each pixel the mean of those that it replaces. As
            it is by default.
        must_be_grey: whether colours are an error.

    Raises:
        InputError: as :func:`header`, a damaged file, colours if they are an error, or pixels that are no numbers or
            out of their range.
    """
    has_colours = False
    with _opened(path) as image, _named(path):
        said = image.size
        image = ImageOps.exif_transpose(image) if _orientation(image) > 1 else image
        image.load()
        if image.format == "TIFF" and image.size != said:  # a bug of Pillow 13
            raise ValueError("uncompressed, and turned by its header, which Pillow misreads")
        if image.mode not in GREY:
            wanted = "L" if channels == 1 or _is_grey(image) else "RGB"
            image = opaque(image)
            if must_be_grey:
                colours = np.asarray(image.convert("RGB"))
                has_colours = bool((colours != colours[..., :1]).any())
            image = image.convert(wanted)
        most = {"1": 1, "F": 1}.get(image.mode, 65_535 if image.mode.startswith("I") else 255)
        if image.mode == "1":
            image = image.convert("L").point(lambda value: value and 1)
        image = image if image.mode == "RGB" else image.convert("F")
        if size is not None and size != (image.height, image.width):
            image = image.resize((size[1], size[0]), Image.Resampling.BOX)
        pixels = np.asarray(image, np.float32) / most
    require(not has_colours, f"{path}: has colours, and the images looked at first have none; set data.channels=3")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    fits = bool(np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1)
    require(fits, f"{path}: has pixels that are no numbers from 0 to 1")
    return np.broadcast_to(pixels, (*pixels.shape[:2], channels)).transpose(2, 0, 1)


def opaque(image: Image.Image) -> Image.Image:
    """Make transparent pixels black; an image without transparency is given back as it is."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))


def read_mask(path: Path, image: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a mask of labels: (H, W) integers; a label is the index of a colour, or a grey value.

    Args:
        path: of the mask.
        image: its image; both must have one size.
        size: height and width; a mask of another size is resized to the nearest labels.

    Raises:
        InputError: a file that cannot be read, has colours but no palette, or has another size than its image.
    """
    wanted = header(image)
    with _opened(path) as mask:
        given = (mask.height, mask.width)
        require(
            given == wanted[:2],
            f"{path}: is {given[0]}x{given[1]} (height, width), its image {wanted.height}x{wanted.width}; both must "
            "have one size",
        )
        require(
            mask.mode in (*GREY, "P"), f"{path}: has colours; a mask must be grey or have a palette, a value an object"
        )
        with _named(path):
            return np.array(mask.resize((size[1], size[0]), Image.Resampling.NEAREST))


def _orientation(image: Image.Image) -> int:
    """Give the orientation that the EXIF header says, 1 if the image is upright; the image is not decoded.

    Pillow turns TIFF files itself. It decodes a PNG file to look for a header behind the pixels, so such a header does
    not count.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _is_grey(image: Image.Image) -> bool:
    palette = image.getpalette() if image.mode == "P" else None
    if palette is not None:
        return palette[::3] == palette[1::3] == palette[2::3]
    return image.mode in (*GREY, "LA")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an error of Pillow, which raises errors of many kinds for damaged files."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from error


def _opened(path: Path) -> Image.Image:
    """Open an image without decoding it."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), _named(path):
        image = Image.open(path)
        with_frames = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # some cameras' JPEGs have a preview
    huge = image.width * image.height > LARGEST
    if with_frames or huge:
        image.close()
    require(not with_frames, f"{path}: has several frames; must be a still image")
    require(not huge, f"{path}: has {image.width}x{image.height} pixels; make it smaller, at most {LARGEST:,}")
    return image
