"""Images of one's own for tests: folders of files, and the data read back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nem_lightning.datamodules import FilesDataModule
from nem_lightning.datamodules.base import Batch
from nem_lightning.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 12, 10, 3), np.uint8)
LABELS = RNG.integers(0, 4, (30, 12, 10))
STAGES = ("train", "val", "test")


def folder_of(folder: Path, pixels: np.ndarray, suffix: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:02}.{suffix}")
    return folder


def data_of(path: Path, **settings) -> FilesDataModule:
    """Give the data, prepared; nearly all images are test images unless ``settings`` say other shares."""
    shares = {} if "val_fraction" in settings else {"val_fraction": 0.0, "test_fraction": 0.999}
    data = FilesDataModule(str(path), cache_dir=str(path.parent / "cache"), **{**shares, **settings})
    data.prepare_data()
    return data


def all_of(data: FilesDataModule, stage: str = "test") -> Batch:
    frames = data.load(stage)
    return frames.__getitems__(range(len(frames)))


def colours(batch: Batch) -> np.ndarray:
    """Give still images of a batch as they were, (N, H, W, C) of 8 bits."""
    return (batch["frames"][:, 0] * 255).round().permute(0, 2, 3, 1).numpy()


def refusal(folder: Path, **settings) -> str:
    """Give the error of data that cannot be used: one line."""
    with pytest.raises(InputError) as error:
        data_of(folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)
