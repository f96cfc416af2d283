import functools
import http.server
import tarfile
import threading

import numpy as np
import pooch
import pytest
import torch
from devkit import make_devkit, module, ready
from PIL import Image

from nem_lightning.datamodules import VOCDataModule
from nem_lightning.errors import InputError


@pytest.fixture
def devkit(tmp_path):
    return make_devkit(tmp_path)


def test_images_groups_and_splits(devkit):
    images = ready(module(devkit)).stages
    assert [len(images[stage]) for stage in ("train", "val", "test")] == [21, 3, 24]
    batch = images["test"].__getitems__([1])
    with Image.open(devkit / "VOC2012/JPEGImages/val_001.jpg") as file:
        pixels = np.asarray(file, dtype=np.float64)
    areas = pixels.reshape(10, 3, 10, 4, 3).mean((1, 3)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(batch["frames"][0, 0], areas, atol=1 / 255)  # each pixel is the mean of its 3 x 4 area
    groups = batch["groups"][0, 0]
    assert set(groups.unique().tolist()) == {-1, 0, 7}  # the class mask; void (255) is -1
    assert (groups[:3, :5] == 7).all() and (groups[4:] == 0).all()
    with_instances = images["test"].groups[0, 0]  # the one image with an instance mask
    assert set(with_instances.unique().tolist()) == {-1, 0, 2, 7}


def test_void_is_a_group_that_is_not_scored(devkit):
    groups = ready(module(devkit, size=40)).stages["test"].groups[1]
    with Image.open(devkit / "VOC2012/SegmentationClass/val_001.png") as mask:
        assert 255 in np.asarray(mask)
    assert 255 not in groups and (groups == -1).sum() > 0


def test_the_cache_is_used_and_follows_the_devkit(devkit, monkeypatch):
    first = ready(module(devkit))
    files = sorted(path.name for path in first.cache_dir.iterdir())
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr(VOCDataModule, "_resize", None)  # a call would fail
        again = ready(module(devkit))
    assert torch.equal(first.stages["train"].frames, again.stages["train"].frames)
    ready(module(devkit, size=8))
    assert len(list(first.cache_dir.iterdir())) == 4
    (devkit / "VOC2012/JPEGImages/train_003.jpg").unlink()
    assert len(ready(module(devkit)).stages["train"]) == 20


def test_a_partial_devkit_says_how_much_is_there(devkit, caplog):
    for i in range(0, 24, 2):
        (devkit / f"VOC2012/JPEGImages/val_{i:03}.jpg").unlink()
    with caplog.at_level("INFO"):
        assert len(ready(module(devkit)).stages["test"]) == 12
    assert "VOC val: found 12 of 24 listed images" in caplog.text
    assert "VOC train: found 24 of 24 listed images" in caplog.text


def test_what_is_missing_is_named(devkit):
    root = devkit / "VOC2012"
    (root / "SegmentationClass/train_005.png").unlink()
    with pytest.raises(InputError, match=r"SegmentationClass/train_005.png: no such file.* needs a mask"):
        module(devkit).prepare_data()
    (root / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(InputError, match=r"train.txt: no such file"):
        module(devkit).prepare_data()
    with pytest.raises(InputError, match="download=no: must be true or false"):
        VOCDataModule("nowhere", "nowhere", download="no")  # pyright: ignore[reportArgumentType]  # a word
    with pytest.raises(InputError, match=r"nowhere/VOC2012: no such folder; set data.devkit .* data.download=true"):
        module(devkit.parent / "nowhere").prepare_data()


def test_a_mask_of_another_size(devkit):
    path = devkit / "VOC2012/SegmentationClass/train_005.png"
    Image.new("P", (30, 40)).save(path)
    with pytest.raises(InputError, match=r"train_005.png: is 30x40, its image 40x30; both must have one size"):
        module(devkit).prepare_data()
    assert not list(module(devkit).cache_dir.glob("*train*"))


@pytest.mark.parametrize("name", ["JPEGImages/train_005.jpg", "SegmentationClass/train_005.png"])
def test_a_truncated_file(devkit, name):
    path = devkit / "VOC2012" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{name}: cannot be read as an image"):
        module(devkit).prepare_data()


def test_a_truncated_cache(devkit):
    cache = sorted(ready(module(devkit)).cache_dir.glob("*train*"))[0]
    cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(InputError, match="delete it to resize the images anew"):
        ready(module(devkit))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve the archive of a small devkit on a local web server."""
    make_devkit(tmp_path / "source")
    archive = tmp_path / "served" / "VOCtrainval_11-May-2012.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "source" / "VOCdevkit", "VOCdevkit")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
    monkeypatch.setattr("nem_lightning.datamodules.voc.URL", url)
    monkeypatch.setattr("nem_lightning.datamodules.voc.HASH", f"md5:{pooch.file_hash(str(archive), alg='md5')}")
    yield
    server.shutdown()
    server.server_close()


def test_download(served, tmp_path):
    datamodule = ready(module(tmp_path / "data" / "VOCdevkit", download=True))
    assert len(datamodule.stages["test"]) == 24
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "VOCdevkit",
        "VOCtrainval_11-May-2012.tar",
        "cache",
    ]


def test_a_download_with_the_wrong_hash(served, tmp_path, monkeypatch):
    monkeypatch.setattr("nem_lightning.datamodules.voc.HASH", "md5:" + "0" * 32)
    with pytest.raises(InputError, match=r"data.download: http.* could not be fetched"):
        module(tmp_path / "data" / "VOCdevkit", download=True).prepare_data()
    assert not list((tmp_path / "data").iterdir())


def test_the_real_subset(real_devkit, tmp_path, caplog):
    with caplog.at_level("INFO"):
        datamodule = ready(VOCDataModule(str(real_devkit), str(tmp_path)))
    assert "train: found 567 of 567" in caplog.text and "val: found 583 of 583" in caplog.text
    images = datamodule.stages
    assert [len(images[stage]) for stage in ("train", "val", "test")] == [510, 57, 583]
    assert images["train"].frames.shape == (510, 1, 3, 64, 64)
    assert 0.2 < (images["test"].groups > 0).float().mean() < 0.35
