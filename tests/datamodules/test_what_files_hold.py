"""Values from files are kept in a type that can hold them, or refused in one line that names the file."""

import h5py
import numpy as np
import pytest
import torch
from devkit import make_devkit, module, ready
from PIL import Image

from nem_lightning.datamodules import ShapesDataModule
from nem_lightning.errors import InputError


def shapes_with(folder, value, key: str = "groups") -> ShapesDataModule:
    """Write a published file in which one pixel of each image has this value."""
    arrays = {name: np.zeros((1, 5, 28, 28, 1), np.float32) for name in ("features", "groups")}
    arrays["groups"][0, :, 4:6] = 1
    arrays[key][0, :, 3, 4] = value
    with h5py.File(folder / "shapes.h5", "w") as file:
        for split in ("training", "validation", "test"):
            for name, array in arrays.items():
                file[f"{split}/{name}"] = array
    return ShapesDataModule(str(folder))


@pytest.mark.parametrize("value", [-1, 0, 2, 255, 256, 257, 32767])
def test_groups_of_shapes_are_kept_as_they_are(tmp_path, value):
    datamodule = shapes_with(tmp_path, value)
    datamodule.setup("test")
    groups = datamodule.test_dataloader().dataset[0]["groups"]
    assert groups[0, 3, 4] == value and groups[0, 4, 0] == 1 and groups.dtype == torch.int64


@pytest.mark.parametrize("value", [-2, 0.5, 32768, np.nan, np.inf, -np.inf])
def test_groups_of_shapes_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(InputError, match=r"shapes.h5: 'test' has groups other than integers from -1") as raised:
        shapes_with(tmp_path, value).setup("test")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, -1, 0.5, 2, 256, np.inf])
def test_pixels_of_shapes_are_0_or_1(tmp_path, value):
    with pytest.raises(InputError, match=r"shapes.h5: 'test' has pixels other than 0 and 1"):
        shapes_with(tmp_path, value, "features").setup("test")


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationObject"])
@pytest.mark.parametrize("pixels", [np.full((30, 40), 257, np.uint16), np.full((30, 40, 3), 1, np.uint8)])
def test_masks_of_voc_of_another_kind_are_refused(tmp_path, folder, pixels):
    devkit = make_devkit(tmp_path)
    Image.fromarray(pixels).save(devkit / "VOC2012" / folder / "train_005.png")
    with pytest.raises(InputError, match=rf"{folder}/train_005.png: .*masks must be palette or grey, of 8 bits"):
        module(devkit).prepare_data()


@pytest.mark.parametrize("name", ["images", "groups"])
def test_a_cache_of_another_type_is_refused(tmp_path, name):
    made = ready(module(make_devkit(tmp_path)))
    (path,) = made.cache_dir.glob("*train*")
    with np.load(path) as file:
        arrays = dict(file)
    for change in (arrays[name].astype(np.float32), arrays[name].astype(np.int16), arrays[name][1:]):
        np.savez_compressed(path, **{**arrays, name: change})
        with pytest.raises(InputError, match=rf"{path.name}: is not what was cached; delete it"):
            module(made.devkit).setup("fit")
