"""Image files as other programs write them: turned, transparent, badly named."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nem_lightning.datamodules import FilesDataModule, image_folder, pictures
from nem_lightning.errors import InputError

GREY = np.random.default_rng(0).integers(0, 256, (8, 6), np.uint8)


def data_of(folder: Path, **settings) -> FilesDataModule:
    data = FilesDataModule(str(folder), cache_dir=str(folder.parent / "cache"), **settings)
    data.prepare_data()
    return data


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_an_image_is_turned_as_its_header_says(tmp_path, suffix):
    image, path = Image.fromarray(np.repeat(GREY, 8).reshape(8, 48)), tmp_path / f"a.{suffix}"
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    settings = {"webp": {"lossless": True}, "tif": {"compression": "tiff_lzw"}}.get(suffix, {})
    image.save(path, exif=exif, **settings)
    assert pictures.header(path)[:2] == (48, 8)
    shown = np.rot90(np.asarray(image), -1) / 255
    np.testing.assert_allclose(pictures.read(path, 1)[0], shown, atol=0.5 if suffix == "jpg" else 1e-3)
    assert np.corrcoef(pictures.read(path, 1).ravel(), shown.ravel())[0, 1] > 0.9
    np.testing.assert_allclose(pictures.read(path, 1, (24, 4))[0].mean(), shown.mean(), atol=0.02)


def test_a_turned_image_that_pillow_misreads_is_refused(tmp_path):
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.tif", exif=exif)
    with pytest.raises(InputError, match=r"a\.tif: cannot be read .*uncompressed, and turned by its header"):
        pictures.read(tmp_path / "a.tif", 1)


def test_transparent_pixels_are_black(tmp_path):
    solid = np.zeros((8, 6), np.uint8)
    solid[2:5, 1:4] = 255
    expected = np.where(solid > 0, GREY, 0) / 255
    colours = np.dstack([GREY, GREY, GREY, solid])
    palette = Image.fromarray(np.where(solid > 0, 1, 0).astype(np.uint8), "L").convert("P")
    palette.putpalette([255, 255, 255, 40, 40, 40])
    for name, image in (("rgba", Image.fromarray(colours)), ("la", Image.fromarray(colours[..., 2:]))):
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_allclose(pictures.read(tmp_path / f"{name}.png", 1)[0], expected, atol=1e-6)
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_allclose(pictures.read(tmp_path / "p.png", 1)[0], (solid > 0) * 40 / 255, atol=1e-6)
    palette.convert("RGB").save(tmp_path / "rgb.png", transparency=(255, 255, 255))
    np.testing.assert_allclose(pictures.read(tmp_path / "rgb.png", 3)[2], (solid > 0) * 40 / 255, atol=1e-6)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    np.testing.assert_allclose(pictures.read(tmp_path / "cmyk.jpg", 1)[0], GREY / 255, atol=0.03)


def test_colours_that_are_seen_late_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "SAMPLE", 2)
    folder = tmp_path / "mine"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(GREY).convert("RGB").save(folder / f"{index}.png")
    assert data_of(folder).image_shape == (1, 8, 6)
    Image.new("RGB", (6, 8), "red").save(folder / "2.png")
    with pytest.raises(InputError, match=r"2\.png: has colours, and the images .* have none; set data\.channels=3"):
        data_of(folder)
    assert len(data_of(folder, skip_unreadable=True).load("all")) == 4
    assert data_of(folder, channels=3).image_shape == (3, 8, 6)


def test_files_that_are_left_out_are_said_once_each(tmp_path, caplog):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(np.tile(GREY, (9, 9)) ^ np.arange(54, dtype=np.uint8)).save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])  # its header can be read
    with caplog.at_level(logging.WARNING):
        data_of(folder, skip_unreadable=True)
    assert caplog.text.count("left out 1 files that cannot be used, such as") == 1


def test_images_that_were_resized_for_other_settings_are_not_used(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setattr(image_folder, "SAMPLE", 1)
    Image.fromarray(GREY).convert("RGB").save(folder / "0.png")
    Image.new("RGB", (6, 8), "red").save(folder / "1.png")
    assert data_of(folder, channels=1).image_shape == (1, 8, 6)
    with pytest.raises(InputError, match=r"1\.png: has colours"):
        data_of(folder)


def test_all_bad_files_are_named_or_counted(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_text("no image")
    Image.fromarray(GREY).save(folder / "good.png")
    with pytest.raises(InputError) as error:
        data_of(folder)
    message = str(error.value)
    assert all(f"{index}.png: cannot be read" in message for index in range(3)) and "\n" not in message
    assert "3.png" not in message and message.endswith("; 6 files in all")
    for index in range(2, 6):
        (folder / f"{index}.png").unlink()
    with pytest.raises(InputError, match=r"0\.png: cannot .*; .*1\.png: cannot") as error:
        data_of(folder)
    assert "in all" not in str(error.value)


def test_names_of_all_kinds(tmp_path):
    folder = tmp_path / "Bilder 1"
    (folder / "ü").mkdir(parents=True)
    for name in ("ü/é.png", "a b.PNG", "a.png", "a.tif", ".hidden.png"):
        Image.fromarray(GREY).save(folder / name)
    (folder / "notes.txt").touch()
    assert data_of(folder).names() == ["a b", "a.png", "a.tif", "ü/é"]


def test_images_of_fewer_bits_than_their_files(tmp_path, caplog):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(GREY.astype(np.uint16) * 16).save(folder / "a.png")  # 12 bits
    with caplog.at_level(logging.WARNING):
        data_of(folder)
    assert "no pixel is brighter than 0.061, where 1 is white" in caplog.text
    caplog.clear()
    Image.fromarray(GREY.astype(np.uint16) * 256).save(folder / "a.png")
    with caplog.at_level(logging.WARNING):
        data_of(folder)
    assert not caplog.text
