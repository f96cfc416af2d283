import logging
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from python_server import forking
from sklearn.cluster import KMeans
from torch.utils.data import DistributedSampler

from nem_lightning.datamodules import ShapesDataModule
from nem_lightning.datamodules.shapes import SPLITS, generate
from nem_lightning.errors import InputError
from nem_lightning.scores.mutual_information import adjusted_mutual_information

SQUARE = "1111111 1111111 1100011 1100011 1100011 1111111 1111111"
TRIANGLE = "000001100000 000011110000 000111111000 001110011100 011100001110 111111111111 111111111111"


def cut_out(image: np.ndarray) -> str:
    """Give the pixels in the bounding box, row by row."""
    rows, columns = np.nonzero(image.any(1))[0], np.nonzero(image.any(0))[0]
    box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return " ".join("".join(map(str, row)) for row in box)


def test_single_shapes_are_the_three_templates_everywhere_equally_often():
    images, groups = generate(6000, 28, 1, np.random.default_rng(0))
    assert np.array_equal(images, groups)
    found, counts = np.unique([cut_out(image) for image in images], return_counts=True)
    upside_down = " ".join(TRIANGLE.split()[::-1])
    assert set(found) == {SQUARE, TRIANGLE, upside_down}
    assert (abs(counts - 2000) < 200).all()
    assert images.any(0).all()  # fully inside, and up to every edge


def test_the_image_is_the_union_and_overlap_is_not_scored():
    images, groups = generate(20000, 28, 3, np.random.default_rng(1))
    assert set(np.unique(groups)) == {0, 1, 2, 3}
    assert (images[groups > 0] == 1).all()
    overlap = (images == 1) & (groups == 0)
    assert abs(images.mean() - 0.160) < 0.001
    assert abs(overlap.any((1, 2)).mean() - 0.715) < 0.01
    assert 0.08 < overlap.sum() / images.sum() < 0.09
    scored_groups = np.stack([(groups == k).any((1, 2)) for k in (1, 2, 3)]).sum(0)
    assert abs((scored_groups == 1).mean() - 0.003) < 0.002


def test_k_means_scores_what_it_is_known_to():
    images, groups = generate(300, 28, 3, np.random.default_rng(2))
    labels = np.zeros_like(groups)
    for image, label in zip(images, labels, strict=True):
        at = np.argwhere(image)
        clusters = KMeans(3, n_init=3, random_state=0)  # pyright: ignore[reportArgumentType]  # any number of starts
        label[at[:, 0], at[:, 1]] = clusters.fit_predict(at)
    scores = adjusted_mutual_information(torch.tensor(labels), torch.tensor(groups), "max")
    assert abs(scores.nanmean() - 0.812) < 0.02


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory) -> Path:
    """A data folder with the whole set of 28 pixels in it."""
    folder = tmp_path_factory.mktemp("whole")
    ShapesDataModule(str(folder)).prepare_data()
    return folder


def array_in(file: h5py.File, name: str) -> h5py.Dataset:
    array = file[name]
    assert isinstance(array, h5py.Dataset)
    return array


def test_the_published_layout(whole_set):
    datamodule = ShapesDataModule(str(whole_set))
    with h5py.File(datamodule.path) as file:
        assert set(file) == set(SPLITS)
        for name, count in SPLITS.items():
            for key in ("features", "groups"):
                array = array_in(file, f"{name}/{key}")
                assert array.shape == (1, count, 28, 28, 1) and array.dtype == np.float32
        assert set(np.unique(array_in(file, "single/groups")[:, :100])) == {0, 1}
    assert [path.name for path in whole_set.iterdir()] == [datamodule.path.name]  # nothing half-written


def test_batches(whole_set):
    datamodule = ShapesDataModule(str(whole_set), batch_size=48)
    datamodule.setup()
    train, val = datamodule.train_dataloader(), datamodule.val_dataloader()
    batch = next(iter(train))
    assert batch["frames"].shape == (48, 1, 1, 28, 28) and batch["frames"].dtype == torch.float32
    assert batch["groups"].shape == (48, 1, 28, 28) and batch["groups"].dtype == torch.int64
    images = datamodule.stages
    assert train.dataset is images["train"] and val.dataset is images["val"]
    assert len(images["train"]) == 50_000 and len(images["val"]) == 10_000
    assert sum(len(batch["frames"]) for batch in val) == 10_000
    one = val.dataset[3]
    assert torch.equal(one["frames"], next(iter(val))["frames"][3]) and one["groups"].shape == (1, 28, 28)


def test_the_order_of_training_batches_depends_on_seed_and_epoch(data_dir):
    def first(seed: int, epoch: int) -> torch.Tensor:
        datamodule = ShapesDataModule(str(data_dir), seed=seed)
        datamodule.setup("fit")
        loader = datamodule.train_dataloader()
        assert isinstance(loader.sampler, DistributedSampler)
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))["frames"]

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert not torch.equal(first(0, 0), first(1, 0))


def test_other_sizes_and_counts_have_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("nem_lightning.datamodules.shapes.SPLITS", dict.fromkeys(SPLITS, 50))
    arguments = [{"size": 20}, {"num_objects": 5}, {"generation_seed": 1}, {"train_on": "single"}]
    modules = [ShapesDataModule(str(tmp_path), **each) for each in arguments]
    for datamodule in modules:
        datamodule.prepare_data()
        datamodule.setup()
    assert len({datamodule.path for datamodule in modules}) == 4
    small, five, _, single = (datamodule.stages["train"] for datamodule in modules)
    assert small.frames.shape == (50, 1, 1, 20, 20)
    assert five.groups.max() == 5
    assert single.groups.max() == 1 and modules[3].stages["val"].groups.max() == 3


def test_a_published_file_is_read_instead(tmp_path, caplog):
    features = np.zeros((1, 12, 28, 28, 1), np.float32)
    features[0, :, 3, 4] = 1
    with h5py.File(tmp_path / "shapes.h5", "w") as file:
        for name in ("training", "validation", "test"):
            file[f"{name}/features"], file[f"{name}/groups"] = features, 2 * features
    with caplog.at_level(logging.INFO):
        datamodule = ShapesDataModule(str(tmp_path))
    assert "shapes.h5 instead of generating" in caplog.text
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.stages["test"]) == 12 and datamodule.stages["test"].groups[0, 0, 3, 4] == 2
    assert len(list(tmp_path.iterdir())) == 1
    changes: tuple[dict[str, Any], ...] = ({"generation_seed": 1}, {"num_objects": 4}, {"size": 20})
    for others in changes:
        assert ShapesDataModule(data_dir=str(tmp_path), **others).path.name != "shapes.h5"
    datamodule = ShapesDataModule(str(tmp_path), train_on="single")
    with pytest.raises(InputError, match=r"shapes.h5: has no group 'single'; its groups are test, training, val"):
        datamodule.setup()


def test_training_on_the_first_images(data_dir):
    every, few = ShapesDataModule(str(data_dir)), ShapesDataModule(str(data_dir), train_images=70)
    assert torch.equal(few.load("train").frames, every.load("train").frames[:70]) and len(few.load("train")) == 70
    assert len(few.load("val")) == len(every.load("val"))


@pytest.mark.parametrize(("train_on", "objects"), [("training", 3), ("single", 1)])
def test_training_on_more_images_than_the_file_has(data_dir, train_on, objects):
    every = ShapesDataModule(str(data_dir), train_on=train_on).load("train")
    count = len(every) + 500
    more, again = (ShapesDataModule(str(data_dir), train_on=train_on, train_images=count).load("train") for _ in "ab")
    assert more.frames.shape == (count, 1, 1, 28, 28) and torch.equal(more.frames[: len(every)], every.frames)
    assert torch.equal(more.groups[: len(every)], every.groups)
    assert torch.equal(more.frames, again.frames) and torch.equal(more.groups, again.groups)  # a run may go on
    others = more.frames[len(every) :]
    assert len(others.flatten(1).unique(dim=0)) > 0.5 * len(others)
    assert not torch.equal(others[: len(every)], every.frames[:500])
    assert more.groups[len(every) :].max() == objects


def write(path, **datasets) -> None:
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file[name.replace("__", "/")] = array


def test_bad_files(tmp_path):
    path = tmp_path / "shapes.h5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match=r"shapes.h5: cannot be read as HDF5"):
        ShapesDataModule(str(tmp_path)).setup()
    good = np.zeros((1, 5, 28, 28, 1), np.float32)
    write(path, training__features=good)
    with pytest.raises(InputError, match=r"shapes.h5: 'training' has no array 'groups'"):
        ShapesDataModule(str(tmp_path)).setup()
    write(path, training__features=good[..., :20, :20, :], training__groups=good)
    with pytest.raises(InputError, match=r"both must be \(1, N, 28, 28, 1\)"):
        ShapesDataModule(str(tmp_path)).setup()
    for bad in (np.zeros((20, 5, 28, 28, 1)), np.zeros((1, 0, 28, 28, 1)), np.zeros((1, 5, 28, 28))):
        write(path, training__features=bad, training__groups=bad)
        with pytest.raises(InputError, match=r"both must be \(1, N, 28, 28, 1\), N at least 1"):
            ShapesDataModule(str(tmp_path)).setup()
    write(path, training__features=good + 0.5, training__groups=good)
    with pytest.raises(InputError, match="pixels other than 0 and 1; Bernoulli models need binary images"):
        ShapesDataModule(str(tmp_path)).setup()


def test_a_truncated_file(whole_set, tmp_path):
    whole = ShapesDataModule(str(whole_set)).path.read_bytes()
    datamodule = ShapesDataModule(str(tmp_path))
    datamodule.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="delete it to generate it anew"):
        datamodule.setup()


def test_a_failed_generation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("nem_lightning.datamodules.shapes.generate", fail)
    with pytest.raises(KeyboardInterrupt):
        ShapesDataModule(str(tmp_path)).prepare_data()
    assert not list(tmp_path.iterdir())


def _prepare(folder: str) -> None:
    import nem_lightning.datamodules.shapes as shapes

    shapes.SPLITS = dict.fromkeys(shapes.SPLITS, 500)
    ShapesDataModule(folder).prepare_data()


def test_several_processes_at_once(tmp_path, monkeypatch):
    context = forking()
    processes = [context.Process(target=_prepare, args=(str(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    datamodule = ShapesDataModule(str(tmp_path))
    datamodule.setup()
    assert len(datamodule.stages["train"]) == 500 and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/data: cannot be written"):
        ShapesDataModule(str(tmp_path / "file" / "data")).prepare_data()
    if os.geteuid() != 0:  # root writes anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(InputError, match="cannot be written"):
            ShapesDataModule(str(tmp_path)).prepare_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 11}, "size=11: must be an integer of at least 12"),
        ({"num_objects": 0}, "num_objects=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"train_on": "test"}, "train_on='test': must be 'training' or 'single'"),
        ({"generation_seed": -1}, "generation_seed=-1"),
        ({"train_images": 0}, "train_images=0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(InputError, match=message):
        ShapesDataModule("data", **arguments)
