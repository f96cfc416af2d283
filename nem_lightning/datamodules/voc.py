"""Pascal VOC 2012 segmentation: natural images in colour."""

import hashlib
import logging
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nem_lightning.datamodules.base import ImagesDataModule, TensorImages
from nem_lightning.errors import InputError, require, require_count
from nem_lightning.files import atomic_file

log = logging.getLogger(__name__)

URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
HASH = "md5:6cd6e144f989b92b3379bac3b3de84fd"
VOID = 255
HELD_OUT = 10  # one training image in this many is for validation


class VOCDataModule(ImagesDataModule):
    """Colour images in [0, 1], squashed to a square, with instance masks where they exist.

    Reads the official layout, ``JPEGImages``, ``SegmentationObject``, ``SegmentationClass`` and
    ``ImageSets/Segmentation``. Every tenth image of the official ``train`` list is for validation, the
    others for training; the official ``val`` list is for the test, so that nothing is tuned on it. An
    image that is listed but not there is left out, and the count is logged. Groups come from
    ``SegmentationObject`` where it has the image, else from ``SegmentationClass``; background and void
    are 0, not scored.

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
        self.image_shape = (3, size, size)
        self.devkit = Path(devkit)
        self.root = self.devkit / "VOC2012"
        self.cache_dir = Path(cache_dir)
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
        partial = f".{self.devkit.name}.partial"  # VOC2012 appears whole or not at all
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
        """The images of an official list that are there."""
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
        """The instance mask where there is one, else the class mask."""
        for folder in ("SegmentationObject", "SegmentationClass"):
            path = self.root / folder / f"{name}.png"
            if path.is_file():
                return path
        raise InputError(f"{path}: no such file, and none in SegmentationObject; every listed image needs a mask")

    def _cache_path(self, split: str, names: list[str]) -> Path:
        """Named by what it was made from, so that another devkit or size never reads a stale one."""
        digest = hashlib.sha256()
        for name in names:
            for path in (self._image_path(name), self._mask_path(name)):
                status = path.stat()
                digest.update(f"{path.relative_to(self.root)} {status.st_size} {status.st_mtime_ns}\n".encode())
        size = self.image_shape[1]
        return self.cache_dir / f"voc2012_{split}_{size}x{size}_{digest.hexdigest()[:12]}.npz"

    def _resize(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 3, size, size) and groups (N, size, size), uint8."""
        log.info("VOC: resizing %d images to %dx%d", len(names), *self.image_shape[1:])
        with ThreadPoolExecutor() as pool:
            images, groups = zip(*pool.map(self._resize_one, names), strict=True)
        return np.stack(images), np.stack(groups)

    def _resize_one(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        image, mask = _open(self._image_path(name)).convert("RGB"), _open(self._mask_path(name))
        require(
            image.size == mask.size,
            f"{self._mask_path(name)}: is {mask.size[0]}x{mask.size[1]}, its image {image.size[0]}x{image.size[1]}; "
            "both must have one size",
        )
        square = self.image_shape[1:]
        groups = np.array(mask.resize(square, Image.Resampling.NEAREST))
        require(groups.ndim == 2, f"{self._mask_path(name)}: has channels; masks must be palette images")
        groups[groups == VOID] = 0
        return np.array(image.resize(square, Image.Resampling.BOX)).transpose(2, 0, 1), groups

    def load(self, stage: str) -> TensorImages:
        split = "val" if stage == "test" else "train"
        path = self._cache_path(split, self._names(split))
        try:
            with np.load(path) as file:
                images, groups = torch.from_numpy(file["images"]), torch.from_numpy(file["groups"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: cannot be read ({error}); delete it to resize the images anew") from error
        if stage != "test":
            held_out = torch.arange(len(images)) % HELD_OUT == 0
            chosen = held_out if stage == "val" else ~held_out
            images, groups = images[chosen], groups[chosen]
        return TensorImages(images, groups, scale=255)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error
    return image
