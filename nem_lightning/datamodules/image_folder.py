"""A folder of image files: its masks, its splits, and the resized images as arrays on disk."""

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nem_lightning.datamodules import pictures
from nem_lightning.datamodules.base import whole_groups
from nem_lightning.errors import InputError, require

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class ImageFolder:
    """A folder of image files, and the arrays that hold them resized.

    Args:
        path: of the folder.
        masks: the folder of masks; None if masks lie beside the images.
        size: H and W; None if all images have one size.
        skip_unreadable: whether files that cannot be read are left out.
        cache_dir: the folder of the resized images.

    Raises:
        InputError: a file that cannot be used, or images of several sizes without ``size``.
    """

    def __init__(
        self, path: Path, masks: str | None, size: tuple[int, int] | None, skip_unreadable: bool, cache_dir: Path
    ) -> None:
        self.path, self.skip_unreadable, self.cache_dir = path, skip_unreadable, cache_dir
        self.masks_path = None if masks is None else Path(masks).expanduser()
        require(self.masks_path is None or self.masks_path.is_dir(), f"masks={masks}: no such folder")
        files = [file for file in pictures.find(path) if not pictures.is_mask(file)]
        if self.masks_path is not None:
            files = [file for file in files if not file.is_relative_to(self.masks_path)]
        self.skipped: list[str] = []
        headers = self._each(pictures.header, files)
        self.files = [file for file, header in zip(files, headers, strict=True) if header is not None]
        found = [header for header in headers if header is not None]
        require(bool(found), f"{path}: has no images that can be read")
        self.channels = max(header.channels for header in found)
        self.is_deep = any(header.is_deep for header in found)
        sizes: dict[tuple[int, int], Path] = {}
        for file, header in zip(self.files, found, strict=True):
            sizes.setdefault(header[:2], file)
        if size is None and len(sizes) > 1:
            (one, first), (other, second), *_ = sizes.items()
            raise InputError(
                f"{second}: is {other[0]}x{other[1]} (height, width), {first.name} is {one[0]}x{one[1]}; set data.size"
            )
        self.size = size or next(iter(sizes))
        self.masks = [pictures.mask_of(file, path, self.masks_path) for file in self.files]
        self.has_masks = any(self.masks)
        if self.has_masks and None in self.masks:
            raise InputError(f"{self.files[self.masks.index(None)]}: has no mask, but other images have; add it")
        require(self.has_masks or self.masks_path is None, f"masks={masks}: has no masks with the names of the images")
        folders = {file.relative_to(path).parts[0] for file in self.files if len(file.relative_to(path).parts) > 1}
        self.has_splits = {"train", "test"} <= folders

    def stages(self) -> list[str]:
        """Give the stage of each image by its folder; without a folder ``val``, every tenth of ``train`` is of it."""
        firsts = [file.relative_to(self.path).parts[0] for file in self.kept]
        if "val" not in firsts:
            training = [index for index, first in enumerate(firsts) if first == "train"]
            for index in training[::10]:
                firsts[index] = "val"
        return firsts

    def sample(self, count: int) -> np.ndarray:
        """Read some images: (N, C, H, W) float32."""
        chosen = [self.files[index] for index in spread(len(self.files), count)]
        found = self._each(lambda file: pictures.read(file, self.channels, self.size), chosen)
        read = [pixels for pixels in found if pixels is not None]
        require(bool(read), f"{self.path}: has no images that can be read")
        return np.stack(read)

    def write(self, binary: bool) -> None:
        """Read all images and masks, and write them resized; does nothing if that was done before.

        Raises:
            InputError: a file that cannot be used.
        """
        folder = self._cache(binary)
        if folder.exists():
            return
        log.info("%s: reading %d images", self.path, len(self.files))
        most = self._most(binary)

        def one(index: int) -> tuple[np.ndarray, np.ndarray]:
            file, mask = self.files[index], self.masks[index]
            pixels = pictures.read(file, self.channels, self.size)
            labels = np.zeros(self.size, np.int64) if mask is None else pictures.read_mask(mask, file, self.size)
            whole_groups(labels, str(mask))
            return np.rint(pixels * most).astype(np.uint16 if most > 255 else np.uint8), labels.astype(np.int16)

        found = self._each(one, range(len(self.files)))
        kept = [index for index, pair in enumerate(found) if pair is not None]
        require(bool(kept), f"{self.path}: has no images that can be read")
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache_dir) as name:
            whole = Path(name, "whole")
            whole.mkdir()
            np.save(whole / "kept.npy", kept)
            for part, file in enumerate(("images.npy", "masks.npy")):
                np.save(whole / file, np.stack([found[index][part] for index in kept]))
            with contextlib.suppress(OSError):  # another process was quicker
                whole.rename(folder)

    def read(self, binary: bool) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Give the resized images (N, C, H, W), their masks (N, H, W) or None, and the divisor of the pixels."""
        folder = self._cache(binary)
        try:
            kept = np.load(folder / "kept.npy")
            images, masks = (np.load(folder / name, mmap_mode="r") for name in ("images.npy", "masks.npy"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: cannot be read ({error}); delete it to read the images anew") from error
        self.kept = [self.files[index] for index in kept]
        return images, masks if self.has_masks else None, self._most(binary)

    def _most(self, binary: bool) -> float:
        return 1.0 if binary else 65_535.0 if self.is_deep else 255.0

    def _each(self, read: Callable[[Item], Any], items: Iterable[Item]) -> list[Any]:
        """Read all, in threads; None for what cannot be read, if that is to be skipped."""

        def one(item: Item) -> Any:
            try:
                return read(item)
            except InputError as error:
                if not self.skip_unreadable:
                    raise
                self.skipped.append(str(error))
                return None

        with ThreadPoolExecutor() as pool:
            found = list(pool.map(one, items))
        if self.skipped:
            log.warning("left out %d files that cannot be used, such as %s", len(self.skipped), self.skipped[0])
        return found

    def _cache(self, binary: bool) -> Path:
        """Give the folder of the resized images. Its name depends on the files, so an older one is never read."""
        digest = hashlib.sha256(f"{self.channels} {self.size} {binary} {self.skip_unreadable}".encode())
        for path in [*self.files, *(mask for mask in self.masks if mask is not None)]:
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        return self.cache_dir / f"files_{digest.hexdigest()[:16]}"


def spread(count: int, most: int) -> np.ndarray:
    """Give at most so many indices below ``count``, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
