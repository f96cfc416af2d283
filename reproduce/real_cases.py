"""Write black and white images of real things, with masks, to try ``data=files`` on.

    python -m reproduce.real_cases my_cases --devkit /path/to/VOCdevkit

- ``coins``: parts of scikit-image's picture of coins; each coin is an object.
- ``text``: parts of scikit-image's picture of a printed page; each line is an object.
- ``voc_masks``: the outlines of two to four classes of things in a photo of Pascal VOC; each class is an object. Only
  with ``--devkit``.

Each is a folder of PNG files, 28 x 28 pixels, with folders train, val and test. The parts of a picture for test do not
overlap those for training. Needs the extra ``reproduce`` (pip install -c constraints.txt -e '.[reproduce]').
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from scipy import ndimage
from skimage import data, filters, measure, morphology

from nem_lightning.errors import InputError, require
from nem_lightning.runs.command_line import Place, print_places

SIZE = 28
"""Height and width of the images."""
COUNTS = {"train": 2000, "val": 100, "test": 100}
"""Parts of a picture, by split."""
LARGE = 0.02
"""The least share of a photo's pixels that a class has."""
SEEN = 0.005
"""The least share of a part's pixels that an object has."""


def main() -> None:
    """Read the command line, and write the folders."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.real_cases", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="the folder to write to; it must not be there yet")
    parser.add_argument("--devkit", type=Path, help="the folder that holds VOC2012")
    arguments = parser.parse_args()
    try:
        require(not arguments.output.exists(), f"{arguments.output}: is there already; choose another folder")
        cases: dict[str, Callable[[str], Iterator[np.ndarray]]] = {"coins": coins, "text": text}
        if (devkit := arguments.devkit) is not None:
            require((devkit / "VOC2012").is_dir(), f"--devkit={devkit}: has no folder VOC2012 in it")
            cases["voc_masks"] = lambda split: voc_masks(devkit / "VOC2012", split)
        for name, labels_of in cases.items():
            for split in COUNTS:
                write(arguments.output / name / split, labels_of(split))
    except InputError as error:
        sys.exit(f"python -m reproduce.real_cases: {error}")
    print_places([Place(name, arguments.output / name) for name in cases], Console())


def write(folder: Path, all_labels: Iterator[np.ndarray]) -> None:
    """Write an image NAME.png and its mask NAME_mask.png for each array of labels, (H, W); 0 is black."""
    folder.mkdir(parents=True)
    for index, labels in enumerate(all_labels):
        small = Image.fromarray(labels.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        small.save(folder / f"{index:04}_mask.png")
        Image.fromarray(np.where(np.asarray(small) > 0, 255, 0).astype(np.uint8)).save(folder / f"{index:04}.png")


def coins(split: str) -> Iterator[np.ndarray]:
    """Give the labels of parts of 120 x 120 pixels; test images show the right third of the picture."""
    picture = data.coins()
    bright = morphology.opening(picture > filters.threshold_local(picture, 151), morphology.disk(2))
    labels = np.array(measure.label(ndimage.binary_fill_holes(bright)))
    labels[:15] = 0  # the border of the picture
    return parts(labels, split, 120, objects=(2, 4))


def text(split: str) -> Iterator[np.ndarray]:
    """Give the labels of parts of 50 x 50 pixels of a paragraph; test images show the right third of the picture."""
    picture = data.page()
    dark = picture < filters.threshold_local(picture, 35, offset=10)
    dark[:45] = dark[138:] = False  # all but the paragraph
    lines = np.array(measure.label(morphology.closing(dark, np.ones((1, 41)))))  # closes the gaps between letters
    return parts(lines * dark, split, 50, objects=(3, 4))


def parts(labels: np.ndarray, split: str, size: int, objects: tuple[int, int]) -> Iterator[np.ndarray]:
    """Draw parts of a labelled picture.

    Args:
        labels: (H, W), 0 is the background.
        split: "train" takes the left two thirds of the picture, "val" and "test" the rest.
        size: height and width of a part, in pixels.
        objects: how many are in a part, at least and at most.
    """
    rng = np.random.default_rng(list(COUNTS).index(split))
    border = labels.shape[1] * 2 // 3
    picture = labels[:, :border] if split == "train" else labels[:, border:]
    drawn = 0
    while drawn < COUNTS[split]:
        row, column = (rng.integers(length - size + 1) for length in picture.shape)
        part = picture[row : row + size, column : column + size]
        _, found, counts = np.unique(np.append(part, 0), return_inverse=True, return_counts=True)  # 0: the background
        of_objects = counts[1:]
        if objects[0] <= len(of_objects) <= objects[1] and of_objects.min() > SEEN * part.size:
            drawn += 1
            yield found[:-1].reshape(part.shape)


def voc_masks(folder: Path, split: str) -> Iterator[np.ndarray]:
    """Give the labels of photos of two to four classes; half of the official validation list is for test."""
    names = (folder / "ImageSets" / "Segmentation" / f"{'train' if split == 'train' else 'val'}.txt").read_text()
    chosen = names.split() if split == "train" else names.split()[0 if split == "val" else 1 :: 2]
    for name in chosen:
        labels = np.asarray(Image.open(folder / "SegmentationClass" / f"{name}.png"))
        sizes = np.bincount(labels.ravel(), minlength=256)
        large = np.flatnonzero(sizes > LARGE * labels.size)
        large = large[(large > 0) & (large < 255)]  # neither the background nor void
        if 2 <= len(large) <= 4:
            yield (labels[..., None] == large) @ np.arange(1, len(large) + 1)


if __name__ == "__main__":
    main()
