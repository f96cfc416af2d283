"""Images of one's own: folders of image files."""

from typing import Any

import numpy as np
import pytest
import torch
from own_images import LABELS, PIXELS, RNG, STAGES, all_of, colours, data_of, folder_of, refusal
from PIL import Image

from nem_lightning.errors import InputError


def test_a_folder_of_colours_with_masks_beside_them(tmp_path):
    folder = folder_of(tmp_path / "mine", PIXELS)
    for index, labels in enumerate(LABELS):
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{index:02}_mask.png")
    data = data_of(folder)
    assert data.image_shape == (3, 12, 10) and not data.binary
    batch = all_of(data)
    assert batch["frames"].dtype == torch.float32 and batch["groups"].dtype == torch.int64
    assert np.array_equal(colours(batch), PIXELS)
    assert np.array_equal(batch["groups"][:, 0].numpy(), LABELS)


def test_masks_in_a_folder_with_a_palette_and_resized_images(tmp_path):
    folder = folder_of(tmp_path / "mine" / "nested", PIXELS[..., 0]).parent
    (tmp_path / "masks" / "nested").mkdir(parents=True)
    for index, labels in enumerate(LABELS):
        mask = Image.fromarray(labels.astype(np.uint8))
        mask.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
        mask.save(tmp_path / "masks" / "nested" / f"{index:02}.png")
    batch = all_of(data_of(folder, masks=str(tmp_path / "masks"), size=[6, 5]))
    expected = PIXELS[..., 0].reshape(30, 6, 2, 5, 2).mean((2, 4)) / 255
    np.testing.assert_allclose(batch["frames"][:, 0, 0].numpy(), expected, atol=1.01 / 255)
    assert batch["groups"].shape == (30, 1, 6, 5) and set(batch["groups"].unique().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("suffix", "white"), [("png", True), ("tif", 255), ("webp", 255)])
def test_black_and_white_images_are_binary(tmp_path, suffix, white):
    bits = PIXELS[..., 0] > 127
    (tmp_path / "mine").mkdir()
    for index, image in enumerate(bits if white is True else bits * np.uint8(white)):
        lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}  # which has colours only
        Image.fromarray(image).save(tmp_path / "mine" / f"{index:02}.{suffix}", **lossless)
    data = data_of(tmp_path / "mine")
    assert data.image_shape == (1, 12, 10) and data.binary
    assert np.array_equal(all_of(data)["frames"][:, 0, 0].numpy(), bits)
    assert "groups" not in all_of(data)


def test_16_bits_are_kept(tmp_path):
    deep = RNG.integers(0, 65_536, (5, 12, 10), np.uint16)
    found = all_of(data_of(folder_of(tmp_path / "mine", deep)))["frames"][:, 0, 0].numpy()
    np.testing.assert_allclose(found, deep / 65_535, atol=1e-6)


def test_folders_of_splits(tmp_path):
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        folder_of(tmp_path / "mine" / name, PIXELS[part])
    data = data_of(tmp_path / "mine")
    assert [len(data.load(stage)) for stage in STAGES] == [18, 2, 10]
    assert np.array_equal(colours(all_of(data)), PIXELS[20:])
    folder_of(tmp_path / "mine" / "val", PIXELS[:3])
    assert [len(data_of(tmp_path / "mine").load(stage)) for stage in STAGES] == [20, 3, 10]


def test_a_share_of_the_images_is_held_out(tmp_path):
    np.save(tmp_path / "mine.npy", np.arange(100).reshape(100, 1, 1).repeat(4, 2) / 100)
    found: dict[int, list[list[int]]] = {}
    for seed in (0, 0, 1):
        data = data_of(tmp_path / "mine.npy", val_fraction=0.2, test_fraction=0.1, split_seed=seed)
        firsts = [all_of(data, stage)["frames"][:, 0, 0, 0, 0] for stage in STAGES]
        parts = [(values * 100).round().int().tolist() for values in firsts]
        assert sorted(parts[0] + parts[1] + parts[2]) == list(range(100)) and [len(part) for part in parts] == [
            70,
            20,
            10,
        ]
        assert found.setdefault(seed, parts) == parts
    assert found[0] != found[1]


def test_bad_image_files_are_named(tmp_path):
    folder = folder_of(tmp_path / "mine", PIXELS[..., 0])
    bad, whole = folder / "bad.png", (folder / "00.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        assert f"{bad}: cannot be read as an image" in refusal(folder)
        assert len(all_of(data_of(folder, skip_unreadable=True))["frames"]) == 30
    Image.new("1", (10_000, 6_000)).save(bad)
    assert "bad.png: has 10000x6000 pixels; make it smaller" in refusal(folder)
    Image.new("L", (3, 4)).save(bad)
    assert "bad.png: is 4x3 (height, width), 00.png is 12x10; set data.size" in refusal(folder)
    bad.unlink()
    moving = folder / "moving.webp"
    Image.new("RGB", (10, 12)).save(moving, save_all=True, append_images=[Image.new("RGB", (10, 12), "red")])
    assert "moving.webp: has several frames; must be a still image" in refusal(folder)
    moving.unlink()
    assert "has pixels other than black and white; set data.binary=false" in refusal(folder, binary=True)
    (tmp_path / "empty").mkdir()
    assert "empty: has no images in it" in refusal(tmp_path / "empty")


def test_bad_masks_are_named(tmp_path):
    folder = folder_of(tmp_path / "mine", PIXELS[..., 0])
    Image.fromarray(LABELS[0].astype(np.uint8)).save(folder / "00_mask.png")
    assert "01.png: has no mask, but others have" in refusal(folder)
    (folder / "00_mask.png").unlink()
    assert "masks=nowhere: no such folder" in refusal(folder, masks="nowhere")
    masks = folder_of(tmp_path / "masks", LABELS.astype(np.uint8)[:, :6])
    assert "00.png: is 6x10 (height, width), its image 12x10" in refusal(folder, masks=str(masks))
    folder_of(masks, PIXELS)
    assert "00.png: has colours; a mask must be grey or have a palette" in refusal(folder, masks=str(masks))


def test_pixels_unlike_those_looked_at_first_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nem_lightning.datamodules.files.SAMPLE", 2)
    images = np.zeros((9, 4, 6))
    images[4] = 0.5
    np.save(tmp_path / "mine.npy", images)
    with pytest.raises(InputError, match=r"pixels other than black and white.* set data\.binary=false"):
        all_of(data_of(tmp_path / "mine.npy"))
    assert all_of(data_of(tmp_path / "mine.npy", binary=False))["frames"].max() == 0.5


def test_masks_whose_suffix_is_in_capitals(tmp_path):
    folder = folder_of(tmp_path / "mine", PIXELS, suffix="PNG")
    for index, labels in enumerate(LABELS):
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{index:02}_mask.PNG")
    assert np.array_equal(all_of(data_of(folder))["groups"][:, 0].numpy(), LABELS)


def test_masks_that_are_not_used_are_named(tmp_path, caplog):
    folder = folder_of(tmp_path / "mine", PIXELS)
    Image.fromarray(LABELS[0].astype(np.uint8)).save(folder / "00_mask.webp")
    assert "groups" not in all_of(data_of(folder))
    assert "00_mask.webp: is a mask of no image, and is left out; masks are files of .png, .tif" in caplog.text


def test_a_folder_of_masks_within_the_images_that_is_named_another_way(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "mine", PIXELS)
    folder_of(folder / "masks", LABELS.astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    assert len(all_of(data_of(folder, masks="mine/masks"))["groups"]) == len(PIXELS)


def test_bad_settings(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((9, 4, 6)))
    for settings, message in (
        ({"size": 0}, "size=0"),
        ({"size": [1, 2, 3]}, "must be one number, or"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "must be less than 1"),
        ({"binary": "yes"}, "binary=yes: must be true, false or null"),
        ({"images_key": "x"}, "mine.npy has one array, without a name"),
        ({"size": 2.5}, "size=2.5: must be an integer of at least 1"),
        ({"channels": 2}, "channels=2: must be 1, 3 or null"),
    ):
        assert message in refusal(tmp_path / "mine.npy", **settings)
    with pytest.raises(InputError, match="has no images for val"):
        data_of(tmp_path / "mine.npy", val_fraction=0.0, test_fraction=0.1).load("val")


def test_black_and_white_stays_so_when_it_is_resized(tmp_path):
    bits = np.kron(PIXELS[:, :6, :5, 0] > 127, np.ones((1, 2, 2), bool))
    data = data_of(folder_of(tmp_path / "mine", bits), size=[6, 5])
    assert data.binary
    assert np.array_equal(all_of(data)["frames"][:, 0, 0].numpy(), bits[:, ::2, ::2])


def test_an_image_unlike_those_looked_at_first_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("nem_lightning.datamodules.image_folder.SAMPLE", 2)
    folder = folder_of(tmp_path / "mine", PIXELS[..., 0] > 127)
    Image.fromarray(PIXELS[4, ..., 0]).save(folder / "04.png")
    assert "04.png: has pixels other than black and white" in refusal(folder)
    assert len(all_of(data_of(folder, skip_unreadable=True))["frames"]) == 29


def test_grey_in_other_forms(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    grey = Image.fromarray(PIXELS[0, ..., 0])
    palette = grey.convert("P")
    palette.putpalette([value for value in range(256) for _ in range(3)])
    for name, image in (("la.png", grey.convert("LA")), ("p.png", palette), ("l.png", grey)):
        image.save(folder / name)
    data = data_of(folder)
    assert data.image_shape[0] == 1
    assert np.array_equal((all_of(data)["frames"][:, 0, 0] * 255).round().numpy(), np.stack([PIXELS[0, ..., 0]] * 3))
    grey.convert("RGB").save(folder / "rgb.png")
    values = sorted(set(PIXELS[0, ..., 0].flat))
    assert (all_of(data_of(folder))["frames"] * 255).round().unique().tolist() == values
    assert data_of(folder, channels=3).image_shape[0] == 3
    Image.fromarray(PIXELS[0]).save(folder / "colours.png")
    assert data_of(folder).image_shape[0] == 3 and data_of(folder, channels=1).image_shape[0] == 1


def test_names_are_those_of_the_files(tmp_path):
    folder = folder_of(tmp_path / "mine" / "a", PIXELS[:2]).parent
    folder_of(folder / "a", PIXELS[:1], "bmp")
    data = data_of(folder)
    data.load("all")
    assert data.names() == ["a/00.bmp", "a/00.png", "a/01"]


def test_a_new_image_leaves_the_split_as_it_is(tmp_path):
    folder = folder_of(tmp_path / "mine", PIXELS)

    def parts() -> dict[str, set[str]]:
        data = data_of(folder, val_fraction=0.2, test_fraction=0.3)
        names = np.array([data.load("all") and data.names()][0])
        return {stage: set(names[data.load(stage).chosen]) for stage in STAGES}

    before = parts()
    Image.fromarray(PIXELS[0]).save(folder / "30.png")
    after = parts()
    assert all(len(after[stage] & before[stage]) >= len(before[stage]) - 1 for stage in STAGES)


def test_an_epoch_of_few_images_shows_each_several_times(tmp_path):
    np.save(tmp_path / "mine.npy", PIXELS)
    data = data_of(tmp_path / "mine.npy", val_fraction=0.1, test_fraction=0.1, batch_size=4, min_batches=20)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 24  # 24 images of which each is shown four times
    epochs = [torch.cat([batch["frames"] for batch in loader]) for _ in range(2)]
    counts = epochs[0].flatten(1).unique(dim=0, return_counts=True)[1]
    assert counts.tolist() == [4] * 24
    loader.sampler.set_epoch(1)  # pyright: ignore[reportAttributeAccessIssue]
    other = torch.cat([batch["frames"] for batch in loader])
    assert torch.equal(*epochs) and not torch.equal(epochs[0], other)
    with pytest.raises(InputError, match="min_batches=0: must be"):
        data_of(tmp_path / "mine.npy", min_batches=0)
