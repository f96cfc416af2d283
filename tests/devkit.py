"""Makes a small devkit in the official layout, and data modules of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from nem_lightning.datamodules import VOCDataModule


def make_devkit(folder: Path, count: int = 24, instances: tuple[int, ...] = (0,)) -> Path:
    """Write ``count`` images for each list. Images whose number is in ``instances`` also have an instance mask."""
    root = folder / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        names = [f"{split}_{i:03}" for i in range(count)]
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / f"JPEGImages/{name}.jpg")
            mask = np.zeros((30, 40), np.uint8)
            mask[:10, :20] = 7
            mask[10:12] = 255
            _save_mask(mask, root / f"SegmentationClass/{name}.png")
            if i in instances:
                mask[:10, 10:20] = 2
                _save_mask(mask, root / f"SegmentationObject/{name}.png")
    return folder / "VOCdevkit"


def _save_mask(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask, mode="P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    image.save(path)


def module(devkit, **arguments) -> VOCDataModule:
    """A data module of small images."""
    return VOCDataModule(str(devkit), str(devkit.parent / "cache"), **{"size": 10, **arguments})


def ready(datamodule: VOCDataModule) -> VOCDataModule:
    """Read the data of a data module, and give the data module."""
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule
