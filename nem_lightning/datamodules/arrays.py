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
NAMES_OF_IMAGES = ("images", "image", "features", "observations", "frames", "x", "arr_0")
NAMES_OF_MASKS = ("masks", "mask", "groups", "labels", "segmentation", "y", "arr_1")
CHANNELS = ((1, 3), (4,))
"""How many there usually are; a fourth is opacity."""
AXES = "NFCHW"


def read(path: Path, images_key: str | None, masks_key: str | None) -> tuple[Any, Any]:
    """Give the array of images and that of masks, None if there is none; .npy and HDF5 files are read piece by piece.

    Args:
        path: of the file.
        images_key: the name of the array of images, such as ``training/features``; by default the only array, or one of
            ``NAMES_OF_IMAGES``.
        masks_key: the name of the array of masks; by default one of ``NAMES_OF_MASKS``, if there is one.

    Raises:
        InputError: no such file or array, a file that cannot be read, or an array that is too large for an archive.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        if path.suffix == ".npy":
            require(images_key is None and masks_key is None, f"{path}: has one array without a name; name no keys")
            return np.load(path, mmap_mode="r"), None
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    require(
                        member.file_size <= LARGEST_ARCHIVE,
                        f"{path}: {member.filename} has {member.file_size:,} bytes when it is unpacked; put arrays of "
                        f"more than {LARGEST_ARCHIVE:,} into an .npy or HDF5 file",
                    )
            with np.load(path) as file:
                found = {name: file[name] for name in _chosen(path, list(file), images_key, masks_key)}
        else:
            file = h5py.File(path, "r")  # stays open: arrays are read piece by piece
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            found = {name: file[name] for name in _chosen(path, names, images_key, masks_key)}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    images, *masks = found.values()
    return images, masks[0] if masks else None


def _chosen(path: Path, names: list[str], images_key: str | None, masks_key: str | None) -> list[str]:
    """Give the names of the array of images and, if there is one, of the array of masks."""
    said = ", ".join(sorted(names)) or "none"

    def one(key: str | None, setting: str, usual: tuple[str, ...]) -> str | None:
        require(key is None or key in names, f"{setting}={key}: {path} has no such array; its arrays are {said}")
        return key or next((name for name in usual if name in names), None)

    images = one(images_key, "images_key", NAMES_OF_IMAGES) or (names[0] if len(names) == 1 else None)
    if images is None:
        raise InputError(f"{path}: set data.images_key to the array of images; its arrays are {said}")
    masks = one(masks_key, "masks_key", NAMES_OF_MASKS)
    return [images, masks] if masks is not None and masks != images else [images]


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


def groups_from(masks: np.ndarray, num_frames: int, size: tuple[int, int], background: bool, name: str) -> np.ndarray:
    """Give masks as groups (N, F, H, W), int64: objects from 1, and 0 for the background.

    Args:
        masks: labels (N, [F,] H, W[, 1]); or a mask of each object, (N, [F,] O, H, W[, 1]) or (N, [F,] H, W, O): the
            largest counts.
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
    fits = (
        masks.shape[-2:] == size and masks.ndim in (lead + 2, lead + 3) and (lead == 1 or masks.shape[1] == num_frames)
    )
    require(
        fits,
        f"{name}: masks have shape {given}; for images of {size[0]}x{size[1]} (height, width) and {num_frames} frames "
        "they must be labels (N, [F,] H, W) or masks of objects (N, [F,] O, H, W)",
    )
    if objects:
        largest = masks.argmax(lead) + (0 if background else 1)
        masks = np.where(masks.max(lead) > 0, largest, 0)
    return masks.reshape(len(masks), num_frames, *size).astype(np.int64)
