"""Images and masks in NumPy and HDF5 files, in any of the usual orders of axes.

An order is a word of the letters N (images), F (frames), C (channels), O (objects), H and W, such as NHWC.
"""

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nem_lightning.errors import InputError, require

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
LARGEST_ARCHIVE = 8_000_000_000
"""Bytes of an array in an .npz file, which is read as a whole."""
NAMES = {
    "images_key": ("images", "image", "features", "observations", "frames", "x", "arr_0"),
    "masks_key": ("masks", "mask", "groups", "labels", "segmentation", "y", "arr_1"),
}
"""The usual names of the array, by the setting that gives another name."""
CHANNELS = ((1, 3), (4,))
"""How many there usually are; a fourth is opacity."""
AXES = "NFCHW"


def read(path: Path, setting: str, key: str | None, needed: bool = True) -> Any:
    """Give an array of a file; .npy and HDF5 files are read piece by piece.

    Args:
        path: of the file.
        setting: "images_key" or "masks_key", which says what is read.
        key: the name of the array, such as ``training/features``; by default one of ``NAMES``, or the only array.
        needed: whether there must be one; otherwise None is given if no array has one of the usual names.

    Raises:
        InputError: no such file or array, a file that cannot be read, or an array that is too large for an archive.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        if path.suffix == ".npy":
            require(key is None, f"{setting}={key}: {path} has one array, without a name")
            return np.load(path, mmap_mode="r")
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                sizes = {member.filename.removesuffix(".npy"): member.file_size for member in archive.infolist()}
            name = _chosen(path, list(sizes), setting, key, needed)
            if name is None:
                return None
            require(
                sizes[name] <= LARGEST_ARCHIVE,
                f"{path}: {name} has {sizes[name]:,} bytes when it is unpacked; put arrays of more than "
                f"{LARGEST_ARCHIVE:,} into an .npy or HDF5 file",
            )
            with np.load(path) as file:
                return file[name]
        file = h5py.File(path, "r")  # stays open: arrays are read piece by piece
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = _chosen(path, names, setting, key, needed)
        return None if name is None else file[name]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _chosen(path: Path, names: list[str], setting: str, key: str | None, needed: bool) -> str | None:
    """Give the name of the array to read."""
    said = ", ".join(sorted(names)) or "none"
    require(key is None or key in names, f"{setting}={key}: {path} has no such array; its arrays are {said}")
    name = key or next((usual for usual in NAMES[setting] if usual in names), None)
    if name is None and needed:
        require(len(names) == 1, f"{path}: set data.{setting} to the array to read; its arrays are {said}")
        return names[0]
    return name


def layout_of(shape: tuple[int, ...], name: str) -> str:
    """Find the order of the axes of images by their shape.

    Args:
        shape: of the array.
        name: of the file, for errors.

    Raises:
        InputError: not 3 to 5 axes, or an order that the shape does not tell.
    """
    first, last = {4: (1, 3), 5: (2, 4)}.get(len(shape), (0, 0))
    if len(shape) == 3:
        return "NHW"
    for channels in CHANNELS if last else ():
        if (shape[first] in channels) != (shape[last] in channels):
            frames = "F" if len(shape) == 5 else ""
            return f"N{frames}HWC" if shape[last] in channels else f"N{frames}CHW"
    raise InputError(
        f"{name}: images have shape {shape}, which does not tell the order of the axes; set data.layout, such as NHWC, "
        "NCHW, NFHW or NFHWC (N images, F frames, C channels)"
    )


def in_order(array: np.ndarray, layout: str) -> np.ndarray:
    """Order the axes of images as (N, F, C, H, W); missing ones have length 1."""
    kept = [letter for letter in AXES if letter in layout]
    ordered = array.transpose([layout.index(letter) for letter in kept])
    return np.expand_dims(ordered, [axis for axis, letter in enumerate(AXES) if letter not in layout])


def scale_of(pixels: np.ndarray, name: str) -> float:
    """Find the divisor that gives pixels from 0 to 1, by their type: 255 for 8 bits, 65,535 for 16.

    It is 1 if no pixel is larger than 1. Otherwise it is 255 if no pixel is larger than 255, and 65,535 if one is; for
    unsigned integers of 16 bits it is then always 65,535.

    Args:
        pixels: any shape.
        name: of the file, for errors.

    Raises:
        InputError: pixels that are no numbers, negative, or floats above 1 that are not whole, or larger than 65,535.
    """
    message = f"{name}: has pixels that are no numbers, negative, or larger than 1 and not whole"
    kind, bits = pixels.dtype.kind, 8 * pixels.dtype.itemsize
    require(kind in "buif" and bool(np.isfinite(pixels).all()) and pixels.min(initial=0) >= 0, message)
    largest = pixels.max(initial=0)
    if largest <= 1:
        return 1.0
    require(kind != "f" or bool((pixels == np.floor(pixels)).all()), message)
    require(largest <= 65_535, f"{name}: has pixels larger than 65,535, which is the most that 16 bits hold")
    return 255.0 if largest <= 255 and (kind, bits) != ("u", 16) else 65_535.0


def require_pixels(pixels: np.ndarray, binary: bool, name: str) -> None:
    """Raise :class:`~nem_lightning.errors.InputError` for pixels that are not from 0 to 1, or not 0 or 1 if binary."""
    fits = bool(np.isfinite(pixels).all() and pixels.min(initial=0) >= 0 and pixels.max(initial=0) <= 1)
    require(fits, f"{name}: has pixels that are no numbers, negative, or larger than the first images say")
    require(
        not binary or bool(np.isin(pixels, (0, 1)).all()),
        f"{name}: has pixels other than black and white; set data.binary=false, or make them black or white",
    )


def groups_from(masks: np.ndarray, num_frames: int, size: tuple[int, int], background: bool, name: str) -> np.ndarray:
    """Give masks as groups (N, F, H, W), int64: objects from 1, and 0 for the background.

    Args:
        masks: labels (N, [F,] H, W[, 1]); or a mask of each object, (N, [F,] O, H, W[, 1]) or (N, [F,] H, W, O). A
            pixel belongs to the mask with the largest value there.
        num_frames: F; without F if it is 1.
        size: H and W.
        background: whether the first of the masks of objects is that of the background.
        name: of the file, for errors.

    Raises:
        InputError: another shape.
    """
    given = masks.shape
    if masks.ndim > 3 and masks.shape[-1] == 1 and masks.shape[-3:-1] == size:
        masks = masks[..., 0]
    if num_frames == 1 and masks.ndim > 3 and masks.shape[1] == 1:
        masks = masks[:, 0]
    lead = 1 if num_frames == 1 else 2
    objects = masks.ndim == lead + 3
    if objects and masks.shape[lead : lead + 2] == size and masks.shape[-2:] != size:
        masks = np.moveaxis(masks, -1, lead)
    fits = masks.shape[-2:] == size and masks.ndim in (lead + 2, lead + 3)
    fits = fits and (lead == 1 or masks.shape[1] == num_frames)
    require(
        fits,
        f"{name}: masks have shape {given}; for images of {size[0]}x{size[1]} (height, width) and {num_frames} frames "
        "they must be labels (N, [F,] H, W) or masks of objects (N, [F,] O, H, W)",
    )
    if objects:
        largest = masks.argmax(lead) + (0 if background else 1)
        masks = np.where(masks.max(lead) > 0, largest, 0)
    return masks.reshape(len(masks), num_frames, *size)
