"""Images of one's own: folders of image files, NumPy and HDF5 files."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
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


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5"])
def test_files_of_arrays(tmp_path, suffix):
    path, one_hot = tmp_path / f"mine.{suffix}", np.eye(4)[LABELS].transpose(0, 3, 1, 2)[..., None]  # (N, O, H, W, 1)
    if suffix == "npy":
        np.save(path, PIXELS)
        np.save(tmp_path / "masks.npy", one_hot)
        data = data_of(path, masks=str(tmp_path / "masks.npy"))
    elif suffix == "npz":
        np.savez(path, image=PIXELS, mask=one_hot, visibility=np.ones(30))
        data = data_of(path)
    else:
        with h5py.File(path, "w") as file:
            file["some/pictures"], file["some/objects"] = PIXELS.transpose(0, 3, 1, 2), LABELS
        data = data_of(path, images_key="some/pictures", masks_key="some/objects")
    batch = all_of(data)
    assert data.image_shape == (3, 12, 10)
    assert np.array_equal(colours(batch), PIXELS)
    assert np.array_equal(batch["groups"][:, 0].numpy(), LABELS)
    assert torch.equal(data.load("test").__getitems__([3, 1, 3])["frames"], batch["frames"][[3, 1, 3]])


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((5, 4, 6), None, (5, 1, 1, 4, 6)),
        ((5, 4, 6, 1), None, (5, 1, 1, 4, 6)),
        ((5, 3, 7, 6), None, (5, 1, 3, 7, 6)),
        ((5, 7, 6, 4), None, (5, 1, 3, 7, 6)),  # the fourth channel is opacity
        ((5, 7, 4, 6), "NFHW", (5, 7, 1, 4, 6)),
        ((5, 7, 5, 6, 3), None, (5, 7, 3, 5, 6)),
        ((5, 7, 3, 5, 6), None, (5, 7, 3, 5, 6)),
        ((5, 3, 4, 3), "NHWC", (5, 1, 3, 3, 4)),
    ],
)
def test_the_order_of_axes(tmp_path, shape, layout, expected):
    np.save(tmp_path / "mine.npy", RNG.random(shape, np.float32))
    assert all_of(data_of(tmp_path / "mine.npy", layout=layout))["frames"].shape == expected


def test_masks_of_sequences_and_objects_without_background(tmp_path):
    frames, labels = RNG.random((5, 7, 8, 6)), RNG.integers(0, 3, (5, 7, 8, 6))
    each = np.stack([labels == k for k in range(3)], 2)
    for masks, background, expected in ((labels, True, labels), (each, True, labels), (each, False, labels + 1)):
        np.savez(tmp_path / "mine.npz", images=frames, masks=masks)
        batch = all_of(data_of(tmp_path / "mine.npz", layout="NFHW", masks_background=background))
        assert np.array_equal(batch["groups"].numpy(), expected)


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(InputError) as error:
        data_of(folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


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


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        ({"images": np.full((9, 4, 6), np.nan)}, {}, "has pixels that are no numbers"),
        ({"images": -np.ones((9, 4, 6))}, {}, "has pixels that are no numbers, negative"),
        ({"images": np.ones((9, 4, 6)), "masks": np.ones((8, 4, 6))}, {}, "has 9 images and 8 masks"),
        ({"images": np.ones((9, 4, 6)), "masks": np.ones((9, 5, 6))}, {}, r"masks have shape \(9, 5, 6\)"),
        ({"images": np.ones((9, 4, 6)), "masks": np.full((9, 4, 6), 1e6)}, {}, "groups other than integers from -1"),
        ({"images": np.ones((9, 4, 6))}, {"images_key": "x"}, "images_key=x: .* its arrays are images"),
        ({"one": np.ones((9, 4, 6)), "two": np.ones(3)}, {}, r"set data\.images_key .* its arrays are one, two"),
        ({"images": np.ones((9, 7, 6, 5))}, {}, r"does not tell the order of the axes; set data\.layout"),
        ({"images": np.ones((9, 4, 6))}, {"layout": "NHWC"}, "layout=NHWC: must name the 3 axes"),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, settings, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InputError, match=message):
        all_of(data_of(tmp_path / "mine.npz", **settings))


def test_bad_files_of_arrays(tmp_path, monkeypatch):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, images=np.zeros((100, 100, 100)))
    with monkeypatch.context() as patch:
        patch.setattr("nem_lightning.datamodules.arrays.LARGEST_ARCHIVE", 1000)
        assert "images has 8,000,128 bytes when it is unpacked" in refusal(path)
    for name, content in (("a.npz", b"PK"), ("a.npy", b""), ("a.h5", b"no"), ("a.npz", path.read_bytes()[:300])):
        (tmp_path / name).write_bytes(content)
        assert f"{name}: cannot be read" in refusal(tmp_path / name)
    assert "no such file" in refusal(tmp_path / "nothing.npy")
    (tmp_path / "a.txt").touch()
    assert "must be a folder of images, or a file of" in refusal(tmp_path / "a.txt")


def test_pixels_unlike_those_looked_at_first_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nem_lightning.datamodules.files.SAMPLE", 2)
    images = np.zeros((9, 4, 6))
    images[4] = 0.5
    np.save(tmp_path / "mine.npy", images)
    with pytest.raises(InputError, match=r"pixels other than black and white.* set data\.binary=false"):
        all_of(data_of(tmp_path / "mine.npy"))
    assert all_of(data_of(tmp_path / "mine.npy", binary=False))["frames"].max() == 0.5


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


def test_pixels_are_scaled_by_their_type(tmp_path):
    for pixels, expected in (
        (np.full((9, 4, 6), 200, np.uint16), 200 / 65_535),
        (np.full((9, 4, 6), 200, np.int64), 200 / 255),
        (np.full((9, 4, 6), 200.0), 200 / 255),
        (np.full((9, 4, 6), 1, np.uint8), 1),
    ):
        np.save(tmp_path / "mine.npy", pixels)
        assert all_of(data_of(tmp_path / "mine.npy"))["frames"].unique().tolist() == pytest.approx([expected])
    np.save(tmp_path / "mine.npy", np.full((9, 4, 6), 1.02))
    assert "larger than 1 and not whole" in refusal(tmp_path / "mine.npy")


def test_masks_are_those_of_the_file_of_masks(tmp_path):
    np.save(tmp_path / "mine.npy", PIXELS)
    np.savez(tmp_path / "both.npz", images=PIXELS[..., 0], masks=LABELS)
    for key in (None, "masks"):
        batch = all_of(data_of(tmp_path / "mine.npy", masks=str(tmp_path / "both.npz"), masks_key=key))
        assert np.array_equal(batch["groups"][:, 0].numpy(), LABELS)


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
