"""A folder of image files: its masks, its splits, and the resized images as arrays on disk."""

import contextlib
import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.lib.format import open_memmap

from nem_lightning.datamodules import pictures
from nem_lightning.datamodules.arrays import require_pixels
from nem_lightning.datamodules.base import whole_groups
from nem_lightning.errors import InputError, require

log = logging.getLogger(__name__)

Found = TypeVar("Found")

SAMPLE = 200
"""How many images are looked at to find what kind of pixels there are."""
READING = 2
"""Goes up when :func:`~nem_lightning.datamodules.pictures.read` gives other pixels: older resized images are stale."""
NAMED = 3
"""How many files that cannot be used are named in one error."""


class ImageFolder:
    """A folder of image files, and the arrays that hold them resized.

    Args:
        path: of the folder.
        masks: the folder of masks; None if masks lie beside the images.
        size: H and W; None if all images have one size.
        channels: 1 or 3; None: 1 if none of the images that are looked at has colours.
        skip_unreadable: whether files that cannot be used are left out.
        cache_dir: the folder of the resized images.

    Raises:
        InputError: a file that cannot be used, or images of several sizes without ``size``.
    """

    def __init__(
        self,
        path: Path,
        masks: str | None,
        size: tuple[int, int] | None,
        channels: int | None,
        skip_unreadable: bool,
        cache_dir: Path,
    ) -> None:
        self.path, self.skip_unreadable, self.cache_dir = path, skip_unreadable, cache_dir
        masks_path = None if masks is None else Path(masks).expanduser()
        require(masks_path is None or masks_path.is_dir(), f"masks={masks}: no such folder")
        of_folder = pictures.find(path)
        files = [file for file in of_folder if not pictures.is_mask(file)]
        if masks_path is not None:
            here, there = path.resolve(), masks_path.resolve()
            files = [file for file in files if not (here / file.relative_to(path)).is_relative_to(there)]
        self.skipped: dict[Path, str] = {}
        found = dict(self._each(pictures.header, files))
        require(bool(found), f"{path}: has no images that can be read")
        self.files = list(found)
        of_files = channels or max(header.channels for header in found.values())
        self.is_deep = any(header.is_deep for header in found.values())
        sizes: dict[tuple[int, int], Path] = {}
        for file, header in found.items():
            sizes.setdefault((header.height, header.width), file)
        if size is None and len(sizes) > 1:
            (one, first), (other, second), *_ = sizes.items()
            raise InputError(
                f"{second}: is {other[0]}x{other[1]} (height, width), {first.name} is {one[0]}x{one[1]}; set data.size"
            )
        self.size = size or next(iter(sizes))
        sample = [self.files[index] for index in spread(len(self.files), SAMPLE)]
        looked = [pixels for _, pixels in self._each(lambda file: _look(pictures.read(file, of_files)), sample)]
        require(bool(looked), f"{path}: has no images that can be read")
        self.is_binary = all(pixels.is_binary for pixels in looked)
        self.brightest = max(pixels.brightest for pixels in looked)
        self.found_grey = channels is None and of_files == 3 and all(pixels.is_grey for pixels in looked)
        self.channels = 1 if self.found_grey else of_files
        masks_of = {file: pictures.mask_of(file, path, masks_path) for file in files}
        if masks_path is None:
            _warn_of_other_masks(of_folder, masks_of)
        self.masks = {file: masks_of[file] for file in self.files}
        without = [file for file, mask in self.masks.items() if mask is None]
        self.has_masks = len(without) < len(self.files)
        require(self.has_masks or masks_path is None, f"masks={masks}: has no masks with the names of the images")
        require(not self.has_masks or not without, f"{without[0] if without else path}: has no mask, but others have")
        folders = {file.relative_to(path).parts[0] for file in self.files if len(file.relative_to(path).parts) > 1}
        self.has_splits = {"train", "test"} <= folders
        self.kept = self.files

    def write(self, binary: bool) -> None:
        """Read all images and masks, and write them resized; does nothing if that was done before.

        Raises:
            InputError: a file that cannot be used.
        """
        folder = self._cache(binary)
        if folder.exists():
            return
        log.info("%s: reading %d images", self.path, len(self.files))
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache_dir) as name:
            whole = Path(name, "whole")
            whole.mkdir()
            shape = (len(self.files), self.channels, *self.size)
            dtype = np.uint16 if self._most(binary) > 255 else np.uint8
            images, masks = open_memmap(whole / "images.npy", "w+", dtype, shape), None
            if self.has_masks:
                masks = open_memmap(whole / "masks.npy", "w+", np.int16, (shape[0], *self.size))

            place = {file: index for index, file in enumerate(self.files)}

            def one(file: Path) -> None:
                index, mask = place[file], self.masks[file]
                pixels = pictures.read(file, self.channels, self.size, must_be_grey=self.found_grey)
                if binary and pictures.header(file)[:2] == self.size:
                    require_pixels(pixels, True, str(file))
                images[index] = np.rint(pixels * self._most(binary))
                if masks is not None and mask is not None:
                    masks[index] = whole_groups(pictures.read_mask(mask, file, self.size), str(mask))

            kept = [place[file] for file, _ in self._each(one, self.files)]
            require(bool(kept), f"{self.path}: has no images that can be read")
            np.save(whole / "kept.npy", kept)
            for array in (images, masks):
                if array is not None:
                    array.flush()
            with contextlib.suppress(OSError):  # another process was quicker
                whole.rename(folder)

    def read(self, binary: bool) -> tuple[np.ndarray, np.ndarray | None, float, np.ndarray]:
        """Give the resized images (N, C, H, W), their masks (N, H, W) or None, the divisor of the pixels, and which of
        the images are used, (N',)."""
        folder = self._cache(binary)
        try:
            kept = np.load(folder / "kept.npy")
            images = np.load(folder / "images.npy", mmap_mode="r")
            masks = np.load(folder / "masks.npy", mmap_mode="r") if self.has_masks else None
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: cannot be read ({error}); delete it to read the images anew") from error
        self.kept = [self.files[index] for index in kept]
        return images, masks, self._most(binary), kept

    def stages(self) -> list[str]:
        """Give the stage of each used image by its folder; without a folder ``val``, a tenth of ``train`` is of it."""
        firsts = [file.relative_to(self.path).parts[0] for file in self.kept]
        if "val" not in firsts:
            training = [index for index, first in enumerate(firsts) if first == "train"]
            for index in training[::10]:
                firsts[index] = "val"
        return firsts

    def names(self) -> list[str]:
        """Give a name for each used image: of its file, without the suffix unless others have the same name."""
        short = [file.relative_to(self.path).with_suffix("").as_posix() for file in self.kept]
        count = Counter(short)
        return [
            name if count[name] == 1 else file.relative_to(self.path).as_posix()
            for name, file in zip(short, self.kept, strict=True)
        ]

    def _most(self, binary: bool) -> float:
        return 1.0 if binary else 65_535.0 if self.is_deep else 255.0

    def _each(self, read: Callable[[Path], Found], files: Iterable[Path]) -> list[tuple[Path, Found]]:
        """Read all, in threads. Give each file with what was read, without those that are left out.

        Raises:
            InputError: files that cannot be used, if they are not left out; the first of them are named.
        """
        failed: dict[Path, str] = {}

        def one(file: Path) -> tuple[Path, Found] | None:
            try:
                return file, read(file)
            except InputError as error:
                failed[file] = str(error)
                return None

        with ThreadPoolExecutor() as pool:
            found = [pair for pair in pool.map(one, files) if pair is not None]
        if failed:
            first = [failed[file] for file in sorted(failed)[:NAMED]]
            if not self.skip_unreadable:
                count = f"; {len(failed)} files in all" if len(failed) > len(first) else ""
                raise InputError(f"{'; '.join(first)}{count}")
            is_news = not failed.keys() <= self.skipped.keys()
            self.skipped |= failed
            if is_news:
                log.warning("left out %d files that cannot be used, such as %s", len(self.skipped), first[0])
        return found

    def _cache(self, binary: bool) -> Path:
        """Give the folder of the resized images. Its name depends on the files, so an older one is never read."""
        settings = (READING, self.channels, self.found_grey, self.size, binary, self.skip_unreadable)
        digest = hashlib.sha256(repr(settings).encode())
        for path in [*self.files, *(mask for mask in self.masks.values() if mask is not None)]:
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        return self.cache_dir / f"files_{digest.hexdigest()[:16]}"


class _Look(NamedTuple):
    """What is seen in the pixels of an image."""

    is_binary: bool
    is_grey: bool
    brightest: float


def _look(pixels: np.ndarray) -> _Look:
    """Look at pixels, (C, H, W) in [0, 1], before they are resized."""
    is_binary = bool(np.isin(pixels, (0, 1)).all())
    return _Look(is_binary, bool((pixels == pixels[:1]).all()), float(pixels.max()))


def spread(count: int, most: int) -> np.ndarray:
    """Give at most so many indices below ``count``, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _warn_of_other_masks(files: Sequence[Path], masks_of: Mapping[Path, Path | None]) -> None:
    """Warn of files that are masks by their names, but of no image."""
    used = set(masks_of.values())
    others = [file for file in files if pictures.is_mask(file) and file not in used]
    if others:
        kinds = ", ".join(pictures.SUFFIXES_OF_MASKS)
        log.warning("%s: is a mask of no image, and is left out; masks are files of %s", others[0], kinds)
