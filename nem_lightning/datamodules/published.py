"""The file layout in which data sets of this family are published: read it, and write the same.

HDF5 groups such as ``training``, ``validation``, ``test``, each with ``features`` and ``groups``, float32, time first:
(F, N, H, W, 1). Other arrays in a group are ignored.
"""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import torch

from nem_lightning.datamodules.base import Frames, TensorFrames, whole_groups
from nem_lightning.errors import InputError, require
from nem_lightning.files import atomic_file

BATCH = 1000
"""Number of sequences that are written at a time, and that are in a chunk of the file."""


def read(path: Path, split: str, size: int, binary: bool, num_frames: int = 1) -> TensorFrames:
    """Read the first frames of all sequences in one group of a file.

    Args:
        path: of the file.
        split: the group's name.
        size: height and width in pixels that the images must have.
        binary: whether pixels must be 0 or 1; real values in [0, 1] otherwise.
        num_frames: F. If it is 1, the file must hold stills; otherwise, further frames of the file are left out.

    Returns:
        Frames (N, F, 1, H, W) and groups (N, F, H, W).

    Raises:
        InputError: no HDF5 file, no such group or arrays, too few frames, arrays of other shapes, or pixels or groups
            out of their range.
    """
    try:
        with h5py.File(path, "r") as file:
            if split not in file:
                raise InputError(f"{path}: has no group {split!r}; its groups are {', '.join(file) or 'none'}")
            features, groups = (_array(path, file, split, key) for key in ("features", "groups"))
            shape, is_still = features.shape, num_frames == 1
            fits = len(shape) == 5 and shape[1] > 0 and shape[2:] == (size, size, 1) and groups.shape == shape
            require(
                fits and (shape[0] == 1 or not is_still),
                f"{path}: {split!r} has features {shape} and groups {groups.shape}; both must be "
                f"({1 if is_still else 'frames'}, N, {size}, {size}, 1), N at least 1",
            )
            require(
                shape[0] >= num_frames,
                f"{path}: {split!r} has sequences of {shape[0]} frames; data.num_frames={num_frames} are asked for",
            )
            images, labels = (array[:num_frames, ..., 0].swapaxes(0, 1) for array in (features, groups))
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error}); delete it to generate it anew") from error
    if binary:
        is_binary = bool(np.isin(images, (0, 1)).all())
        require(is_binary, f"{path}: {split!r} has pixels other than 0 and 1; Bernoulli models need binary images")
        images = images.astype(np.uint8)
    else:
        in_range = bool((images >= 0).all() and (images <= 1).all())
        require(in_range, f"{path}: {split!r} has pixels outside [0, 1]")
    labels = whole_groups(labels, f"{path}: {split!r}")
    return TensorFrames(torch.from_numpy(images).unsqueeze(2), torch.from_numpy(labels))


def write(path: Path, splits: Iterable[tuple[str, Frames]]) -> None:
    """Write data sets of one channel to a file, which is either complete or absent.

    Args:
        path: of the file.
        splits: the name of each group and its frames.

    Raises:
        InputError: frames of more than one channel.
    """
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        for name, frames in splits:
            for start in range(0, len(frames), BATCH):
                batch = frames.__getitems__(range(start, min(start + BATCH, len(frames))))
                num_frames, channels, height, width = batch["frames"].shape[1:]
                require(channels == 1, f"{path}: images of one channel can be written, no others")
                for key, values in (("features", batch["frames"].squeeze(2)), ("groups", batch["groups"])):
                    array = file.require_dataset(
                        f"{name}/{key}",
                        (num_frames, len(frames), height, width, 1),
                        np.float32,
                        chunks=(1, min(len(frames), BATCH), height, width, 1),
                        compression="gzip",
                        compression_opts=1,
                        shuffle=True,
                    )
                    array[:, start : start + BATCH] = values.float().transpose(0, 1).unsqueeze(-1).cpu().numpy()


def _array(path: Path, file: h5py.File, split: str, key: str) -> h5py.Dataset:
    array = file.get(f"{split}/{key}")
    if not isinstance(array, h5py.Dataset):
        raise InputError(f"{path}: {split!r} has no array {key!r}")
    return array
