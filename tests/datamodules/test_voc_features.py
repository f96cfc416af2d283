"""Feature maps of Pascal VOC's images."""

import sys

import pytest
import torch
import torch.nn.functional as F
from devkit import make_devkit

from nem_lightning.datamodules import VOCFeaturesDataModule, voc_features
from nem_lightning.errors import InputError


def module(folder, **arguments) -> VOCFeaturesDataModule:
    """A data module of small images, 24 in each list."""
    devkit = folder / "VOCdevkit"
    if not devkit.exists():
        make_devkit(folder)
    return VOCFeaturesDataModule(str(devkit), str(folder / "cache"), **{"size": 16, "num_features": 4, **arguments})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A devkit, and the features in its cache."""
    folder = tmp_path_factory.mktemp("voc")
    module(folder).prepare_data()
    return folder


def test_features_are_the_principal_components_of_the_networks(folder):
    data = module(folder)
    training, test = (data.load(stage) for stage in ("train", "test"))
    assert training.frames.shape == (21, 1, 4, 2, 2) and test.frames.shape == (24, 1, 4, 2, 2)
    network, found = voc_features._network(), []
    network._blocks[14].register_forward_hook(lambda *of: found.append(of[-1]))
    with torch.no_grad():
        for stage in ("train", "test"):
            pixels = F.interpolate(data.images.load(stage).frames[:, 0].float(), (64, 64), mode="bicubic")
            network.extract_features((pixels.clamp(0, 255) - 127) / 128)
    own, others = (maps.transpose(0, 1).flatten(1) for maps in found)  # (192, positions)
    mean = own.mean(1, keepdim=True)
    axes, variances, _ = torch.linalg.svd((own - mean).double(), full_matrices=False)
    scale = variances[:4].square().mean().sqrt() / own.shape[1] ** 0.5
    for features, maps in ((training, own), (test, others)):
        expected = axes[:, :4].T @ (maps - mean).double() / scale
        given = features.frames[:, 0].transpose(0, 1).flatten(1).double()
        signs = (given * expected).sum(1, keepdim=True).sign()  # of an axis: arbitrary
        torch.testing.assert_close(given, expected * signs, rtol=0, atol=2e-3)
    assert training.frames.square().mean().item() == pytest.approx(1, abs=1e-3)


def test_groups_are_at_every_eighth_pixel(folder):
    data = module(folder)
    groups = data.load("val").groups
    assert groups.shape == (3, 1, 2, 2) and torch.equal(groups, data.images.load("val").groups[..., 4::8, 4::8])


def test_the_cache_is_used_and_depends_on_the_settings(folder, monkeypatch):
    monkeypatch.setattr(voc_features, "_network", lambda: pytest.fail("computed anew"))
    module(folder).prepare_data()
    for other in ({"num_features": 5}, {"size": 24}):
        with pytest.raises(pytest.fail.Exception, match="computed anew"):
            module(folder, **other).prepare_data()


def test_a_damaged_cache_is_named(tmp_path, folder, monkeypatch):
    data = module(tmp_path)
    data.images.prepare_data()
    data._cache_path().write_bytes(module(folder)._cache_path().read_bytes()[:500])
    with pytest.raises(InputError, match=r"voc2012_4_features_\w+.npz: cannot be read .* delete it"):
        data.load("train")


def test_what_is_missing_or_out_of_range_is_said(tmp_path, monkeypatch):
    for arguments, message in (
        ({"size": 20}, "size=20: must be a multiple of 8"),
        ({"num_features": 0}, "num_features=0: must be an integer of at least 1"),
        ({"num_features": 193}, "num_features=193: must be at most 192"),
    ):
        with pytest.raises(InputError, match=message):
            module(tmp_path, **arguments)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"the package efficientnet_lite_pytorch is missing; pip install .*features"):
        module(tmp_path).prepare_data()
