"""Images of one's own, grouped by a trained model: as arrays, and by ``predict.py``."""

import contextlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import composed
from conftest import ROOT
from hydra.errors import CompactHydraException
from PIL import Image
from tiny import few_shapes

import predict as predict_script
from nem_lightning import group, load, predictions
from nem_lightning.errors import InputError
from nem_lightning.runs.command_line import one_line_errors
from nem_lightning.training import checkpoints

BEST = ROOT / "results" / "checkpoints" / "rnn_em_seed0.ckpt"
FAST = {"num_steps": 3, "num_starts": 2}
IMAGES = few_shapes(6).frames[:, 0, 0].numpy()  # (N, H, W), 0 and 1


def test_groups_are_those_of_the_model():
    found = group(IMAGES, BEST, **FAST, num_components=4)
    module = checkpoints.load_module(BEST, seed=0)
    frames = torch.from_numpy(IMAGES)[:, None, None].float()
    *_, last = module.model(frames, **FAST, num_components=4, generator=module.generator("test", 0))
    assert last.mean is not None and found.means is not None
    np.testing.assert_allclose(found.responsibilities, last.responsibilities.squeeze(2).detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.means, last.mean.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert np.array_equal(found.labels, np.where(IMAGES > 0, last.labels.numpy() + 1, 0))
    assert load(BEST).num_components == 3  # the checkpoint is as it was


def with_palette(image: np.ndarray) -> Image.Image:
    """Give an image whose palette has white as 0 and black as 1."""
    found = Image.fromarray(np.uint8(1) - image.astype(np.uint8), mode="P")
    found.putpalette([255, 255, 255, 0, 0, 0])
    return found


def see_through(image: np.ndarray) -> Image.Image:
    """Give an image whose palette has white as 1, and white that is transparent as 0."""
    found = Image.fromarray(image.astype(np.uint8), mode="P")
    found.putpalette([255] * 6)
    found.info["transparency"] = 0
    return found


@pytest.mark.parametrize(
    "images",
    [
        IMAGES * np.uint8(255),
        IMAGES[..., None].astype(np.uint16) * np.uint16(65_535),
        torch.from_numpy(IMAGES).float()[:, None],
        torch.from_numpy(IMAGES)[:, None, None].bool(),
        [Image.fromarray(image * np.uint8(255)) for image in IMAGES],
        tuple(IMAGES > 0),
        [with_palette(image) for image in IMAGES],
        [see_through(image) for image in IMAGES],
    ],
    ids=[
        "8 bits",
        "16 bits, NHWC",
        "tensor, NCHW",
        "tensor, NFCHW",
        "PIL",
        "tuple",
        "PIL with a palette",
        "transparent",
    ],
)
def test_images_come_in_any_usual_form(images):
    expected = group(IMAGES, BEST, **FAST)
    for one, other in zip(group(images, BEST, **FAST), expected, strict=True):
        assert one is not None and other is not None and np.array_equal(one, other)


def test_one_image_is_a_set_of_one():
    for image in (IMAGES[0], IMAGES[0][None], IMAGES[0][..., None]):
        assert group(image, BEST, **FAST).labels.shape == (1, 28, 28)


def test_images_that_the_model_cannot_take():
    for images, message in (
        (
            IMAGES[:, :20],
            r"have shape \(6, 20, 28\); this model takes images of 28x28 .* with 1 channel: resize or convert them",
        ),
        (np.zeros((2, 28, 28, 3)), r"have shape \(2, 28, 28, 3\)"),
        (IMAGES * 0.5, "have grey pixels; this model takes black and white"),
        (np.full((28, 28), np.nan), "has pixels that are no numbers"),
        ([IMAGES[0], IMAGES[0][:20]], "must all have one"),
        ([], "there are none"),
    ):
        with pytest.raises(InputError, match=message):
            group(images, BEST)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "mine" / "a").mkdir(parents=True)
    for index, image in enumerate(IMAGES):
        Image.fromarray(image * np.uint8(255)).save(tmp_path / "mine" / "a" / f"{index}.png")
    return tmp_path / "mine"


def predicted(folder: Path, *overrides: str) -> Path:
    output = folder.parent / "found"
    words = [f"ckpt_path={BEST}", f"images={folder}", f"output={output}", f"paths.data_dir={folder.parent}/cache"]
    predict_script.predict(composed("predict", *words, *(f"{k}={v}" for k, v in FAST.items()), *overrides))
    return output


def test_predict_writes_what_group_finds(folder, capsys):
    output = predicted(folder)
    expected = group(IMAGES, BEST, **FAST)
    for index in range(6):
        with Image.open(output / "labels" / "a" / f"{index}.png") as labels:
            assert labels.mode == "P" and np.array_equal(np.asarray(labels), expected.labels[index])
        with np.load(output / "arrays" / "a" / f"{index}.npz") as arrays:
            assert np.array_equal(arrays["responsibilities"], expected.responsibilities[index])
            assert expected.means is not None and np.array_equal(arrays["means"], expected.means[index])
        assert (output / "overlays" / "a" / f"{index}.png").exists()
    assert str(output / "contact_sheet.png") in capsys.readouterr().out.replace("\n", "")


def test_predict_goes_on_and_overwrites_nothing(folder, monkeypatch):
    output = predicted(folder, "batch_size=2")
    arrays = sorted((output / "arrays" / "a").iterdir())
    before = {path: path.read_bytes() for path in arrays}
    for path in arrays[3:]:  # as if it had been stopped in the second batch
        path.unlink()
    times = {path: path.stat().st_mtime_ns for path in arrays[:2]}
    predicted(folder, "batch_size=2")
    assert {path: path.read_bytes() for path in arrays} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(InputError, match="was written with other settings; choose another folder"):
        predicted(folder, "batch_size=2", "num_components=4")
    other = folder.parent / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(InputError, match=r"other: is not empty, and not of predict\.py"):
        predict_script.claim(other, "")


def test_bad_input_of_predict_gets_one_line(folder, tmp_path):
    for arguments, message in (
        ([], "ckpt_path: must be given"),
        ([f"ckpt_path={BEST}", f"images={folder}"], "output: must be given"),
        ([f"ckpt_path={BEST}", "images=nowhere.png", "output=found"], "nowhere.png: no such file or folder"),
        (["ckpt_path=nowhere.ckpt", f"images={folder}", "output=found"], "ckpt_path=nowhere.ckpt: no such file"),
    ):
        with contextlib.chdir(tmp_path), pytest.raises(CompactHydraException) as error, one_line_errors():
            predict_script.predict(composed("predict", *arguments))
        assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "found").exists()


def test_an_output_within_the_images_is_refused(folder):
    words = [f"ckpt_path={BEST}", f"images={folder}", f"output={folder}/found", f"paths.data_dir={folder.parent}"]
    with pytest.raises(InputError, match="found: is in the folder of images; choose another folder"):
        predict_script.predict(composed("predict", *words))


def test_coloured_files_of_black_and_white_images_are_taken(folder):
    for path in (folder / "a").iterdir():
        with Image.open(path) as image:
            image.convert("RGB").save(path)
    output = predicted(folder)
    with Image.open(output / "labels" / "a" / "0.png") as labels:
        assert np.array_equal(np.asarray(labels), group(IMAGES, BEST, **FAST).labels[0])


def test_labels_have_the_size_of_the_image(folder):
    large = [image.repeat(5, 0).repeat(3, 1) for image in IMAGES]  # 140 x 84
    for index, image in enumerate(large):
        Image.fromarray(image * np.uint8(255)).save(folder / "a" / f"{index}.png")
    thin = np.array(large[0])
    thin[:, 0] = thin[0] = 1  # too thin for 28 x 28
    Image.fromarray(thin * np.uint8(255)).save(folder / "a" / "0.png")
    output = predicted(folder)
    expected = group(IMAGES, BEST, **FAST)
    for index, image in enumerate([thin, *large[1:]]):
        with Image.open(output / "labels" / "a" / f"{index}.png") as file:
            labels = np.asarray(file)
        assert labels.shape == (140, 84) and np.array_equal(labels > 0, image > 0)
        small, bright = labels[2::5, 1::3], IMAGES[index] > 0
        assert np.array_equal(small[bright], expected.labels[index][bright])
        with Image.open(output / "overlays" / "a" / f"{index}.png") as file:
            assert np.array_equal(np.asarray(file).max(2) > 130, image > 0)
        with np.load(output / "arrays" / "a" / f"{index}.npz") as arrays:
            assert np.array_equal(arrays["responsibilities"], expected.responsibilities[index])
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.height < 400
    np.save(folder.parent / "mine.npy", np.stack(large))
    shutil.rmtree(output)
    predicted(folder.parent / "mine.npy")
    with Image.open(output / "labels" / "1.png") as file:
        assert np.array_equal(np.asarray(file)[2::5, 1::3], expected.labels[1])


def test_how_often_each_number_of_components_was_chosen_is_printed(folder, capsys):
    output = predicted(folder, "num_components=auto")
    names = [f"a/{index}" for index in range(6)]
    counts = predictions.numbers_of_components(output, names)
    labels = group(IMAGES, BEST, **FAST, num_components="auto").responsibilities
    assert counts == Counter((labels.max((2, 3)) > 0).sum(1).tolist()) and counts.total() == 6
    number, count = counts.most_common(1)[0]
    assert f"{number} in {count} images" in capsys.readouterr().out


def test_the_overlay_of_a_sequence_shows_the_frame_that_is_explained(tmp_path):
    frames = np.zeros((2, 6, 28, 28), bool)
    for frame in range(6):
        frames[:, frame, 3 * frame : 3 * frame + 6, 8:16] = True
    np.save(tmp_path / "mine.npy", frames)
    words = [f"ckpt_path={BEST}", f"images={tmp_path}/mine.npy", f"output={tmp_path}/found", "layout=NFHW"]
    predict_script.predict(composed("predict", *words, "num_steps=3", "num_starts=1"))
    with Image.open(tmp_path / "found" / "overlays" / "0.png") as overlay:
        bright = np.asarray(overlay).max(2) > 130
    assert np.array_equal(bright, frames[0, 3])
    with Image.open(tmp_path / "found" / "labels" / "0.png") as labels:
        assert np.array_equal(np.asarray(labels) > 0, frames[0, 3])
