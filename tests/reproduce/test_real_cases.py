"""Images of real things, to try ``data=files`` on."""

import itertools
import sys

import numpy as np
import pytest
from devkit import make_devkit
from PIL import Image
from skimage import measure

from reproduce import real_cases


@pytest.mark.parametrize(("labels_of", "fewest"), [(real_cases.coins, 2), (real_cases.text, 3)])
def test_parts_of_a_picture(labels_of, fewest):
    for labels in itertools.islice(labels_of("test"), 5):
        numbers, counts = np.unique(labels, return_counts=True)
        assert fewest <= numbers.max() <= 4 and numbers.tolist() == list(range(numbers.max() + 1))
        assert counts.min() > real_cases.SEEN * labels.size
        if labels_of is real_cases.coins:
            for number in numbers[1:]:  # in one piece, but for crumbs at the border
                pieces = np.bincount(np.array(measure.label(labels == number)).ravel())[1:]
                assert pieces.max() > 0.9 * pieces.sum()
        else:  # lines are one below the other
            rows = [np.argwhere(labels == number)[:, 0].mean() for number in numbers[1:]]
            assert min(np.diff(rows)) > 5


def test_test_images_do_not_show_what_training_images_show():
    picture = np.zeros((20, 90), int)
    picture[:10, :60], picture[:10, 60:], picture[10:, 60:] = 1, 2, 3
    for split, objects in (("train", 1), ("val", 2), ("test", 2)):
        found = itertools.islice(real_cases.parts(picture, split, 18, (1, 2)), 20)
        assert {labels.max() for labels in found} == {objects}


def test_photos_of_several_classes(tmp_path):
    folder = make_devkit(tmp_path, count=4) / "VOC2012"
    path = folder / "SegmentationClass" / "val_001.png"
    labels = np.array(Image.open(path))
    labels[20:, :30] = 15
    Image.fromarray(labels).save(path)
    (found,) = real_cases.voc_masks(folder, "test")
    assert np.array_equal(found == 1, labels == 7) and np.array_equal(found == 2, labels == 15)
    assert not list(real_cases.voc_masks(folder, "val")) and not list(real_cases.voc_masks(folder, "train"))


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real_cases, "COUNTS", {"train": 2, "val": 1, "test": 1})
    devkit = make_devkit(tmp_path)
    monkeypatch.setattr(sys, "argv", ["real_cases", str(tmp_path / "cases"), "--devkit", str(devkit)])
    real_cases.main()
    for name in ("coins", "text"):
        paths = sorted(path.name for path in (tmp_path / "cases" / name / "train").iterdir())
        assert paths == ["0000.png", "0000_mask.png", "0001.png", "0001_mask.png"]
        test = tmp_path / "cases" / name / "test"
        image, mask = (np.asarray(Image.open(test / f"0000{end}.png")) for end in ("", "_mask"))
        assert image.shape == (28, 28) and np.array_equal(image == 255, mask > 0) and set(np.unique(image)) == {0, 255}
    assert (tmp_path / "cases" / "voc_masks" / "train").is_dir()
    with pytest.raises(SystemExit, match="cases: is there already; choose another folder"):
        real_cases.main()
    monkeypatch.setattr(sys, "argv", ["real_cases", str(tmp_path / "more"), "--devkit", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no folder VOC2012"):
        real_cases.main()
    assert not (tmp_path / "more").exists()
