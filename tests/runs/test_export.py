"""Data sets as files in the published layout."""

import pytest

from nem_lightning.datamodules import FlyingShapesDataModule
from nem_lightning.errors import InputError
from nem_lightning.runs.export import export


def test_a_set_is_written_and_read_again(tmp_path, monkeypatch):
    splits = {"train": ("training", 40), "val": ("validation", 20), "test": ("test", 20)}
    monkeypatch.setattr("nem_lightning.datamodules.flying.SPLITS", splits)
    file = tmp_path / "flying_shapes_4.h5"
    export(file, ["data=flying_shapes", "data.num_objects=4", "data.num_frames=3", f"paths.data_dir={tmp_path}"])
    read = FlyingShapesDataModule(str(tmp_path), num_objects=4, num_frames=3)
    assert read.path == file
    read.setup()
    assert {stage: len(frames) for stage, frames in read.stages.items()} == {"train": 40, "val": 20, "test": 20}
    with pytest.raises(InputError, match=r"flying_shapes_4.h5: is there already"):
        export(file, [])
