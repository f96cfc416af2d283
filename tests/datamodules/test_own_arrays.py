"""Arrays of one's own: NumPy and HDF5 files."""

import h5py
import numpy as np
import pytest
import torch
from own_images import LABELS, PIXELS, RNG, all_of, colours, data_of, refusal

from nem_lightning.errors import InputError


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
        ({"images": np.ones((9, 4, 6, 2))}, {"layout": "NHWC"}, r"has images of 2 channels; must be 1, 3 or 4"),
        ({"images": np.ones((9, 4, 6, 5))}, {"layout": "NHWC"}, r"has images of 5 channels; must be 1, 3 or 4"),
        ({"images": np.ones((9, 8, 6, 4))}, {"channels": 1}, "channels=1: .*has images of 3"),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, settings, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InputError, match=message):
        all_of(data_of(tmp_path / "mine.npz", **settings))


@pytest.mark.parametrize(("name", "suffix"), [("labels", "npz"), ("y", "h5")])
def test_labels_of_whole_images_are_no_masks(tmp_path, name, suffix):
    path = tmp_path / f"mine.{suffix}"
    if suffix == "npz":
        np.savez(path, **{"images": PIXELS, name: np.arange(30)})  # pyright: ignore[reportArgumentType]
    else:
        with h5py.File(path, "w") as file:
            file["images"], file[name] = PIXELS, np.arange(30)
    assert "groups" not in all_of(data_of(path))
    with pytest.raises(InputError, match=r"masks have shape"):
        all_of(data_of(path, masks_key=name))


def test_the_fourth_channel_is_opacity(tmp_path):
    np.savez(tmp_path / "mine.npz", images=np.concatenate([PIXELS, PIXELS[..., :1]], 3))
    for channels in (None, 3):
        assert np.array_equal(colours(all_of(data_of(tmp_path / "mine.npz", channels=channels))), PIXELS)


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
