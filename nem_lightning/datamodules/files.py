"""Images of your own: a folder of image files, a NumPy file or an HDF5 file.

Shapes: N images or sequences, B of them in a batch, F frames, C channels, H by W pixels.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nem_lightning.datamodules import arrays, pictures
from nem_lightning.datamodules.array_frames import ArrayFrames, pixels_of, rows_of
from nem_lightning.datamodules.base import FramesDataModule
from nem_lightning.datamodules.image_folder import SAMPLE, ImageFolder, spread
from nem_lightning.errors import require, require_count, require_flag, require_number

log = logging.getLogger(__name__)

DARK = 1 / 8
"""If no pixel is brighter, the images may have fewer bits than their files: 12 of 16 give 1/16."""


class FilesDataModule(FramesDataModule[ArrayFrames]):
    """Images of your own, with or without masks.

    - *A folder of images* (PNG, JPEG, TIFF, WebP, BMP), also in folders in it. If it has folders ``train`` and ``test``
      (and ``val``), these are the splits. The images are resized once, into a file in ``cache_dir``.
    - *A NumPy file* (.npy, .npz) *or an HDF5 file*, of stills or sequences. .npy and HDF5 files are read batch by
      batch, so they may be larger than memory.

    Pixels are binary if all pixels of up to 200 images, spread over the set, are 0 or 1. Images are grey if none of
    these has colours. Masks are images or arrays of integer labels (0: background, which is not scored), or arrays with
    a mask of each object. Without masks, AMI and ARI are not scored.

    Args:
        path: the folder or the file.
        masks: a folder of masks with the names of the images; by default, masks are the files ``NAME_mask.png`` beside
            the images, if there are any. For arrays: a NumPy file of masks.
        images_key: the name of the array of images in an .npz or HDF5 file, such as ``training/features``.
        masks_key: the name of the array of masks.
        layout: the order of the axes of an array, such as NHWC, NCHW or NFHWC; by default found by its shape.
        masks_background: whether the first mask of arrays with a mask of each object is that of the background.
        size: height and width, one number or two, to which images are resized; by default as they are.
        channels: 1 or 3, to make the images of a folder grey or coloured; by default as they are.
        binary: whether pixels are 0 or 1; by default found from up to 200 images.
        val_fraction: the share of images to validate on, if there are no folders of splits.
        test_fraction: the share of images to test on, likewise.
        split_seed: of the split.
        skip_unreadable: whether image files that cannot be read are left out, and counted; otherwise they are an error.
        cache_dir: the folder of resized images.
        batch_size: images in a batch, at least 1.
        min_batches: batches in an epoch, at least. If there are fewer images, an epoch shows each several times.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range, or a file that cannot be used; the message names the file.
    """

    def __init__(
        self,
        path: str,
        masks: str | None = None,
        images_key: str | None = None,
        masks_key: str | None = None,
        layout: str | None = None,
        masks_background: bool = True,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        binary: bool | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        skip_unreadable: bool = False,
        cache_dir: str = "data",
        batch_size: int = 64,
        min_batches: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        require_count("min_batches", min_batches)
        require_flag("masks_background", masks_background)
        require_flag("skip_unreadable", skip_unreadable)
        require_count("split_seed", split_seed, minimum=0)
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            require_number(name, share, minimum=0, maximum=1)
        require(val_fraction + test_fraction < 1, "val_fraction + test_fraction: must be less than 1")
        require(binary is None or isinstance(binary, bool), f"binary={binary}: must be true, false or null")
        require(path is not None, "path: must be given, the folder or file of images")
        require(channels in (None, 1, 3), f"channels={channels}: must be 1, 3 or null")
        self.path, self.min_batches = Path(path).expanduser(), min_batches
        self.fractions, self.split_seed = {"val": val_fraction, "test": test_fraction}, split_seed
        self.background, self.cache_dir = masks_background, Path(cache_dir).expanduser()
        wanted = _checked_size(size)
        self.folder: ImageFolder | None = None
        if self.path.is_dir():
            named = images_key is None and masks_key is None and layout is None
            require(named, "images_key, masks_key, layout: are for files of arrays")
            self.folder = ImageFolder(self.path, masks, wanted, channels, skip_unreadable, self.cache_dir)
            self.layout, num_frames = "NCHW", 1
            self.image_shape = (self.folder.channels, *self.folder.size)
            is_binary, brightest = self.folder.is_binary, self.folder.brightest
        else:
            self._images, self._masks, self.layout = _arrays(self.path, masks, images_key, masks_key, layout)
            first = arrays.in_order(rows_of(self._images, spread(len(self._images), SAMPLE)), self.layout)
            _, num_frames, found, height, width = first.shape
            is_usual = any(found in usual for usual in arrays.CHANNELS)
            require(is_usual, f"{self.path}: has images of {found} channels; must be 1, 3 or 4 (with opacity)")
            used = min(found, 3)
            require(channels in (None, used), f"channels={channels}: {self.path} has images of {used}")
            height, width = wanted or (height, width)
            self.image_shape = (used, height, width)
            self.scale = arrays.scale_of(first, str(self.path))
            values = first[:, :, :3].astype(np.float32) / np.float32(self.scale)
            arrays.require_pixels(values, False, str(self.path))
            is_binary, brightest = bool(np.isin(values, (0, 1)).all()), float(values.max(initial=0))
        message = f"{self.path}: has pixels other than black and white; set data.binary=false"
        require(is_binary or binary is not True, message)
        self.binary = is_binary if binary is None else binary
        self._say(num_frames, brightest)

    def _say(self, num_frames: int, brightest: float) -> None:
        what = "images" if num_frames == 1 else f"sequences of {num_frames} frames"
        has_masks = self.folder.has_masks if self.folder is not None else self._masks is not None
        count = len(self.folder.files) if self.folder is not None else len(self._images)
        channels, height, width = self.image_shape
        kind = "black and white" if self.binary else "grey" if channels == 1 else "in colours"
        masks = "with masks" if has_masks else "without masks"
        log.info("%s: %d %s of %dx%d, %s, %s", self.path, count, what, height, width, kind, masks)
        if brightest < DARK:
            text = "%s: no pixel is brighter than %.3f, where 1 is white; scale the images if they have fewer bits"
            log.warning(text, self.path, brightest)

    def prepare_data(self) -> None:
        """Resize the images of a folder, once; several processes may do so at once."""
        if self.folder is not None:
            self.folder.write(self.binary)

    def load(self, stage: str) -> ArrayFrames:
        """Read the images of a stage, "train", "val" or "test", or "all" images."""
        if self.folder is not None:
            images, masks, scale, kept = self.folder.read(self.binary)
        else:
            images, masks, scale, kept = self._images, self._masks, self.scale, np.arange(len(self._images))
        chosen = kept[self._chosen(stage, len(kept))]
        require(len(chosen) > 0, f"{self.path}: has no images for {stage}; add some, or set data.{stage}_fraction")
        return ArrayFrames(
            images,
            masks,
            chosen,
            self.layout,
            scale,
            self.binary,
            self.image_shape[0],
            self.image_shape[1:],
            self.background,
            str(self.path),
        )

    def passes(self, count: int) -> int:
        return math.ceil(self.min_batches * self.batch_size / count)

    def names(self) -> list[str]:
        """Give a name for each image that :meth:`load` gives for "all": the file's in the folder, or a number."""
        if self.folder is not None:
            return self.folder.names()
        digits = len(str(len(self._images) - 1))
        return [f"{index:0{digits}}" for index in range(len(self._images))]

    def originals(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Read images in their own size, one by one: (F, C, H, W) float32 in [0, 1].

        Args:
            indices: of the images that :meth:`load` gives for "all".
        """
        channels = self.image_shape[0]
        if self.folder is not None:
            yield from (pictures.read(self.folder.kept[index], channels)[None] for index in indices)
        else:
            yield from pixels_of(self._images, np.asarray(indices), self.layout, channels, self.scale)

    def _chosen(self, stage: str, count: int) -> np.ndarray:
        """Give which of the images are a stage's. The split depends on the names of the images.

        If images are added to a folder, most others keep their stage.
        """
        if stage == "all":
            return np.arange(count)
        if self.folder is not None and self.folder.has_splits:
            return np.flatnonzero(np.array(self.folder.stages()) == stage)
        keys = [hashlib.sha256(f"{self.split_seed} {name}".encode()).digest() for name in self.names()]
        order = sorted(range(count), key=keys.__getitem__)
        val, test = (round(self.fractions[name] * count) for name in ("val", "test"))
        parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        return np.sort(np.array(parts[stage], int))


def _arrays(
    path: Path, masks: str | None, images_key: str | None, masks_key: str | None, layout: str | None
) -> tuple[Any, Any, str]:
    """Give the array of images, that of masks or None, and the order of the images' axes."""
    require(path.exists(), f"path={path}: no such file or folder")
    allowed = f"must be a folder of images, or a file of {', '.join(arrays.SUFFIXES)}"
    require(path.suffix in arrays.SUFFIXES, f"{path}: {allowed}")
    images, of_masks = arrays.read(path, "images_key", images_key), None
    if masks is not None:
        of_masks = arrays.read(Path(masks).expanduser(), "masks_key", masks_key)
    elif path.suffix != ".npy" or masks_key is not None:
        of_masks = arrays.read(path, "masks_key", masks_key, needed=False)
        if masks_key is None and of_masks is not None and of_masks.ndim < 3:
            log.info("%s: the labels are of whole images, so they are no masks", path)
            of_masks = None
    layout = layout or arrays.layout_of(images.shape, str(path))
    letters = "".join(sorted(layout))
    fits = layout[:1] == "N" and letters in ("HNW", "CHNW", "FHNW", "CFHNW") and len(letters) == images.ndim
    require(
        fits,
        f"layout={layout}: must name the {images.ndim} axes of the images, N first, by the letters N, F, C, H and W",
    )
    require(len(images) > 0, f"{path}: has no images in it")
    require(
        of_masks is None or len(of_masks) == len(images),
        f"{path}: has {len(images)} images and {0 if of_masks is None else len(of_masks)} masks; must be as many",
    )
    return images, of_masks, layout


def _checked_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Give H and W, or None.

    Raises:
        InputError: not one or two integers of at least 1.
    """
    if size is None:
        return None
    both = list(size) if isinstance(size, Sequence) else [size, size]
    require(len(both) == 2, f"size={size}: must be one number, or [height, width]")
    for one in both:
        require_count("size", one)
    return both[0], both[1]
