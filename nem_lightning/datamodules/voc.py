"""Pascal VOC 2012 segmentation: natural images in colour."""

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nem_lightning.datamodules.base import FramesDataModule, TensorFrames
from nem_lightning.errors import InputError, require, require_count, require_flag
from nem_lightning.files import atomic_file
from nem_lightning.scores.base import VOID

log = logging.getLogger(__name__)

URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
HASH = "md5:6cd6e144f989b92b3379bac3b3de84fd"
MASK_VOID = 255  # of the official masks
HELD_OUT = 10  # one training image in this many is for validation
MASKS = {"class": "SegmentationClass", "instance": "SegmentationObject"}
"""The kinds of masks, and the folders that hold them."""


class VOCDataModule(FramesDataModule[TensorFrames]):
    """Colour images in [0, 1], squashed to a square, with instance masks if they exist.

    Reads the official layout, ``JPEGImages``, ``SegmentationObject``, ``SegmentationClass`` and
    ``ImageSets/Segmentation``. Every tenth image of the official ``train`` list is for validation, the
    others for training; the official ``val`` list is for the test, so that nothing is tuned on it. A
    listed image that is missing is left out, and the count is logged. Groups come from
    ``SegmentationObject`` if it has the image, else from ``SegmentationClass``; background is 0, and void is -1.

    The resized arrays are cached in ``cache_dir``.

    Args:
        devkit: the folder ``VOCdevkit`` (the one that holds ``VOC2012``).
        cache_dir: where the resized arrays are kept.
        batch_size: images in a batch, at least 1.
        size: height and width in pixels; images are averaged over areas, masks take the nearest pixel.
        download: fetch the official archive (2 GB) into the devkit's parent folder if the devkit is not there.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range; a devkit or a list that is missing; an image whose mask
            is missing, has another size, or cannot be read.
    """

    binary = False
    channels: ClassVar[int] = 3
    """C, of the frames that :meth:`load` gives."""

    def __init__(
        self,
        devkit: str,
        cache_dir: str,
        batch_size: int = 64,
        size: int = 64,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        require_count("size", size)
        require_flag("download", download)
        self.image_shape = (self.channels, size, size)
        self.devkit = Path(devkit).expanduser()
        self.root = self.devkit / "VOC2012"
        self.cache_dir = Path(cache_dir).expanduser()
        self.download = download
        self._found: dict[str, list[str]] = {}

    def prepare_data(self) -> None:
        """Download the devkit if asked to, then resize what is not in the cache yet."""
        if not self.root.is_dir():
            if not self.download:
                raise InputError(
                    f"{self.root}: no such folder; set data.devkit to the folder VOCdevkit, or data.download=true"
                )
            self._download()
        for split in ("train", "val"):
            names = self._names(split)
            cache = self._cache_path(split, names)
            if not cache.exists():
                images, groups = self._resize(names)
                with atomic_file(cache) as temporary, open(temporary, "wb") as file:
                    np.savez_compressed(file, images=images, groups=groups)

    def _download(self) -> None:
        import pooch

        folder = self.devkit.parent
        partial = f".{self.devkit.name}.partial"  # unpacked here first, so that VOC2012 is never incomplete
        shutil.rmtree(folder / partial, ignore_errors=True)
        try:
            pooch.retrieve(
                URL,
                known_hash=HASH,
                path=folder,
                fname=URL.rsplit("/", 1)[1],
                processor=pooch.Untar(extract_dir=partial),
                progressbar=True,
            )
            self.devkit.mkdir(exist_ok=True)
            (folder / partial / "VOCdevkit" / "VOC2012").rename(self.root)
        except (OSError, ValueError) as error:
            raise InputError(f"data.download: {URL} could not be fetched into {folder} ({error})") from error
        finally:
            shutil.rmtree(folder / partial, ignore_errors=True)

    def _names(self, split: str) -> list[str]:
        """Give the names in an official list whose images exist."""
        if split in self._found:
            return self._found[split]
        path = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.is_file():
            raise InputError(f"{path}: no such file; a devkit lists its images there")
        listed = path.read_text().split()
        found = [name for name in listed if self._image_path(name).is_file()]
        log.info("VOC %s: found %d of %d listed images in %s", split, len(found), len(listed), self.root)
        require(len(found) >= HELD_OUT, f"{path}: only {len(found)} of {len(listed)} listed images are there")
        self._found[split] = found
        return found

    def _image_path(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"

    def _mask_path(self, name: str) -> Path:
        """Give the path of the instance mask if there is one, else of the class mask."""
        for folder in ("SegmentationObject", "SegmentationClass"):
            path = self.root / folder / f"{name}.png"
            if path.is_file():
                return path
        raise InputError(f"{path}: no such file, and none in SegmentationObject; every listed image needs a mask")

    def _cache_path(self, split: str, names: list[str]) -> Path:
        """Give the cache's path. Its name depends on the source files and the size, so a stale cache is never read."""
        digest = hashlib.sha256()
        for name in names:
            for path in (self._image_path(name), self._mask_path(name)):
                status = path.stat()
                digest.update(f"{path.relative_to(self.root)} {status.st_size} {status.st_mtime_ns}\n".encode())
        size = self.image_shape[1]
        return self.cache_dir / f"voc2012_{split}_with_void_{size}x{size}_{digest.hexdigest()[:12]}.npz"

    def _resize(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Give images (N, 3, size, size) and masks (N, size, size), uint8, 255 for void."""
        log.info("VOC: resizing %d images to %dx%d", len(names), *self.image_shape[1:])
        with ThreadPoolExecutor() as pool:
            images, groups = zip(*pool.map(self._resize_one, names), strict=True)
        return np.stack(images), np.stack(groups)

    def _resize_one(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        image, path = _open(self._image_path(name)).convert("RGB"), self._mask_path(name)
        groups = self._resized_mask(path, image.size)
        return np.array(image.resize(self.image_shape[1:], Image.Resampling.BOX)).transpose(2, 0, 1), groups

    def _resized_mask(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """Give the resized mask, (H, W) uint8, of an image of original ``size`` (width, height)."""
        mask = _open(path)
        require(
            mask.size == size,
            f"{path}: is {mask.size[0]}x{mask.size[1]}, its image {size[0]}x{size[1]}; both must have one size",
        )
        resized = np.array(mask.resize(self.image_shape[1:], Image.Resampling.NEAREST))
        require(
            resized.ndim == 2 and resized.dtype == np.uint8,
            f"{path}: is {resized.dtype} with {resized.ndim} dimensions; masks must be palette or grey, of 8 bits",
        )
        return resized

    def masks(self, stage: str, kind: str) -> Tensor:
        """Give the official masks of one kind only; groups mix both kinds.

        Args:
            stage: "train", "val" or "test"; images in the order of :meth:`load`.
            kind: "class" (``SegmentationClass``) or "instance" (``SegmentationObject``).

        Returns:
            (N, size, size), int16: 0 is background, -1 is void; all pixels are void if the image has no such mask.

        Raises:
            InputError: a mask that has another size than its image, or cannot be read.
        """

        def read(name: str) -> np.ndarray:
            path = self.root / MASKS[kind] / f"{name}.png"
            if not path.is_file():
                return np.full(self.image_shape[1:], MASK_VOID, np.uint8)
            with Image.open(self._image_path(name)) as image:
                return self._resized_mask(path, image.size)

        split = _split(stage)
        with ThreadPoolExecutor() as pool:
            masks = torch.from_numpy(np.stack(list(pool.map(read, self._names(split)))))
        return _with_void(masks[_chosen(stage, len(masks))])

    def load(self, stage: str) -> TensorFrames:
        split = _split(stage)
        path = self._cache_path(split, self._names(split))
        images, groups = read_cache(path, ("images", "groups"), "resize the images")
        size, count = self.image_shape[1], len(self._names(split))
        require(
            images.dtype == groups.dtype == torch.uint8
            and images.shape == (count, 3, size, size)
            and groups.shape == (count, size, size),
            f"{path}: is not what was cached; delete it to resize the images anew",
        )
        chosen = _chosen(stage, len(images))
        return TensorFrames(images[chosen, None], _with_void(groups[chosen])[:, None], scale=255)


def read_cache(path: Path, names: Sequence[str], purpose: str) -> list[Tensor]:
    """Read arrays of a cache, an .npz file.

    Args:
        path: of the cache.
        names: of the arrays.
        purpose: what is done anew without the cache, for the error.

    Raises:
        InputError: the cache cannot be read.
    """
    try:
        with open(path, "rb") as opened, np.load(opened) as file:  # NumPy leaves a damaged file open
            return [torch.from_numpy(file[name]) for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it to {purpose} anew") from error


def _with_void(masks: Tensor) -> Tensor:
    """Give uint8 masks as int16 groups, in which void is -1."""
    return torch.where(masks == MASK_VOID, VOID, masks.to(torch.int16))


def _split(stage: str) -> str:
    """Give the official list that a stage's images are from."""
    return "val" if stage == "test" else "train"


def _chosen(stage: str, count: int) -> Tensor:
    """Say which of a list's images belong to a stage, (count,) boolean."""
    held_out = torch.arange(count) % HELD_OUT == 0
    return {"train": ~held_out, "val": held_out, "test": torch.ones_like(held_out)}[stage]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error
