"""The command that compares RNN-EM on Pascal VOC with groupings that need no learning."""

import csv
import functools
import json

import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT
from devkit import make_devkit
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console

from nem_lightning.datamodules import VOCDataModule, VOCFeaturesDataModule
from nem_lightning.errors import InputError
from nem_lightning.scores.base import VOID
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule
from reproduce import voc
from reproduce.voc_baselines import BASELINES, SEEDED, Segmentation


def test_masks_of_one_kind(tmp_path):
    data = VOCDataModule(str(make_devkit(tmp_path, instances=(0, 1))), str(tmp_path / "cache"), size=40)
    data.prepare_data()
    classes, instances = data.masks("test", "class"), data.masks("test", "instance")
    assert classes.shape == instances.shape == (24, 40, 40)
    assert classes.unique().tolist() == [VOID, 0, 7]
    assert instances[:2].unique().tolist() == [VOID, 0, 2, 7] and (instances[2:] == VOID).all()
    assert torch.equal(data.load("test").groups[2:, 0], classes[2:])  # the class mask if there is no other
    assert torch.equal(data.masks("val", "class"), data.masks("train", "class")[:3])  # alike in this devkit
    assert len(data.masks("val", "instance")) == 3 and len(data.masks("train", "class")) == 21


GAUSSIAN = {"_target_": "nem_lightning.models.likelihoods.Gaussian"}
M_STEP = {"_target_": "nem_lightning.models.m_steps.RecurrentMStep", "image_shape": [3, 16, 16], "hidden_size": 8}
MODEL = {"_target_": "nem_lightning.models.em.NeuralEM", "num_steps": 2, "likelihood": GAUSSIAN, "m_step": M_STEP}
MODULE = {"_target_": "nem_lightning.training.module.GroupingModule"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Give a function that trains and saves a model of K components (one epoch, small devkit), and the devkit."""
    folder = tmp_path_factory.mktemp("voc")
    devkit = make_devkit(folder, instances=(0, 1))

    @functools.cache
    def of(k: int, seed: int = 0):
        config = {"model": {**MODEL, "num_components": k}, "module": {**MODULE, "seed": seed}}
        module = checkpoints.build(**config, optimizer=functools.partial(torch.optim.Adam, lr=1e-3))
        callbacks = [checkpoints.SaveConfig(config), ModelCheckpoint(folder, filename=f"k{k}_{seed}")]
        trainer = pl.Trainer(
            max_epochs=1,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=callbacks,
        )
        trainer.fit(module, VOCDataModule(str(devkit), str(folder / "cache"), size=16))
        return folder / f"k{k}_{seed}.ckpt"

    return of, devkit


@pytest.fixture(scope="module")
def of_features(trained):
    """Give a checkpoint of a model of feature maps, with K = 3 and the image size of the others."""
    _, devkit = trained
    m_step = {**M_STEP, "image_shape": [4, 2, 2]}
    config = {"model": {**MODEL, "m_step": m_step, "smoothing": 0, "num_steps": 3}, "module": MODULE}
    saved = {checkpoints.KEY: config, "epoch": 4, "global_step": 40}
    torch.manual_seed(0)
    torch.save(saved | {"state_dict": checkpoints.build(**config).state_dict()}, devkit.parent / "features.ckpt")
    return devkit.parent / "features.ckpt"


@pytest.fixture(scope="module")
def of_places(trained):
    """Give a checkpoint of a model of colours and places, with K = 3 and the image size of the others."""
    _, devkit = trained
    config = {"model": {**MODEL, "m_step": {**M_STEP, "image_shape": [6, 16, 16]}}, "module": MODULE}
    saved = {checkpoints.KEY: config}  # weights alone
    torch.save(saved | {"state_dict": checkpoints.build(**config).state_dict()}, devkit.parent / "places.ckpt")
    return devkit.parent / "places.ckpt"


def command(monkeypatch, devkit, out, *arguments) -> None:
    monkeypatch.setenv("NEM_DATA_DIR", str(devkit.parent))
    monkeypatch.setattr("sys.argv", ["voc", "--devkit", str(devkit), "--out", str(out), *map(str, arguments)])
    voc.main()


def test_the_command(trained, tmp_path, monkeypatch, capsys):
    of, devkit = trained
    command(monkeypatch, devkit, tmp_path, "--checkpoint", of(3, 0), of(3, 1))
    files = [f"voc_16x16.{end}" for end in ("csv", "json", "md", "png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    result = json.loads((tmp_path / "voc_16x16.json").read_text())
    settings = result["settings"]
    assert settings["images"] == 24 and settings["with_instance_masks"] == 2
    assert (settings["size"], settings["num_components"]) == (16, 3)
    assert [of["num_steps"] for of in settings["checkpoints"]] == [2, 2]
    assert [of["epochs"] for of in settings["checkpoints"]] == [1, 1]
    assert [of["seed"] for of in settings["checkpoints"]] == [0, 1]
    ours = result["scores"]["RNN-EM"]
    assert ours["mbo_class"]["runs"] == 2 and ours["mbo_class"]["sd_over_runs"] is not None
    assert ours["mbo_class"]["images"] == 24 and ours["mbo_instance"]["images"] == 2
    assert ours["ari_class_2+"] is None and ours["ari_instance_2+"]["images"] == 2
    assert set(result["scores"]) == {"RNN-EM", *BASELINES, "true classes"}
    for name in BASELINES:
        assert result["scores"][name]["mbo_class"]["runs"] == (3 if name in SEEDED else 1)
    colour = {name: of["colour_r2"]["mean"] for name, of in result["scores"].items()}
    assert max(colour, key=lambda name: colour[name]) == "colour k-means" and colour["whole image"] == pytest.approx(0)
    assert result["agreement"]["RNN-EM"]["ami with true class masks"]["images"] == 24
    with open(tmp_path / "voc_16x16.csv", newline="") as file:
        rows = {(row["method"], row["score"]): row for row in csv.DictReader(file)}
    assert float(rows["RNN-EM", "mbo_class"]["mean"]) == ours["mbo_class"]["mean"]
    assert (tmp_path / "voc_16x16.png").stat().st_size > 10_000
    assert "| SLIC merged |" in (tmp_path / "voc_16x16.md").read_text()
    assert "voc_16x16.json" in capsys.readouterr().out


def test_models_of_pixels_places_and_features_are_compared(trained, of_features, of_places, tmp_path, monkeypatch):
    of, devkit = trained
    command(monkeypatch, devkit, tmp_path, "--checkpoint", of(3), of_features, of_places)
    result = json.loads((tmp_path / "voc_16x16.json").read_text())
    models = ["RNN-EM", "RNN-EM, 4 features", "RNN-EM, colours and places"]
    others = {"k-means, 4 features", "k-means, colours and places"}
    assert set(result["scores"]) == {*models, *others, *BASELINES, "true classes"}
    assert [result["scores"][name]["mbo_class"]["runs"] for name in others] == [3, 3]
    assert [one["method"] for one in result["settings"]["checkpoints"]] == models
    shown = (tmp_path / "voc_16x16.md").read_text()
    assert "\nRNN-EM, 4 features: `" in shown and "weights after ? epochs (? updates)" in shown


def test_responsibilities_of_feature_maps_are_enlarged(trained, of_features):
    """Each quarter of an image belongs to the component of its place in the map of 2 x 2."""
    _, devkit = trained
    data = VOCFeaturesDataModule(str(devkit), str(devkit.parent / "cache"), size=16, num_features=4)
    data.prepare_data()
    module = checkpoints.load_module(of_features)
    labels = voc.labels_of(module, data, "val", 16, "", Console())
    batch = next(iter(data.eval_dataloader("val")))
    small = module.model(batch["frames"], generator=module.generator("test", 0))[-1].labels
    assert labels.shape == (3, 16, 16) and torch.equal(labels[:, [0, 0, -1, -1], [0, -1, 0, -1]], small.flatten(1))


def test_without_a_checkpoint_nothing_else_is_overwritten(trained, tmp_path, monkeypatch):
    _, devkit = trained
    command(monkeypatch, devkit, tmp_path, "--split", "val")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["voc_baselines_val"] * 4
    settings = json.loads((tmp_path / "voc_baselines_val.json").read_text())["settings"]
    assert (settings["images"], settings["size"], settings["num_components"]) == (3, 64, 3)


def test_only_neural_em_is_called_so(trained):
    of, _ = trained
    other = GroupingModule(Segmentation(BASELINES["vertical strips"], (3, 16, 16), 3, 0))
    assert [voc.title(module) for module in (checkpoints.load_module(of(3)), other)] == ["RNN-EM", "Segmentation"]


def test_other_k_and_sizes_overwrite_nothing(trained, tmp_path, monkeypatch):
    of, devkit = trained
    (tmp_path / "voc.md").write_text("K=3, 64 x 64")
    command(monkeypatch, devkit, tmp_path, "--split", "val", "--checkpoint", of(2))
    assert {path.stem for path in tmp_path.iterdir()} == {"voc", "voc_K2_16x16_val"}
    assert (tmp_path / "voc.md").read_text() == "K=3, 64 x 64"


def test_errors_are_one_line_and_nothing_is_written(trained, tmp_path, monkeypatch):
    of, devkit = trained
    for arguments, message in (
        ((devkit, tmp_path, "--checkpoint", of(3), of(2)), r"k2_0.ckpt: num_components is 2, the first one's 3"),
        ((devkit, tmp_path, "--checkpoint", "nowhere.ckpt"), "reproduce.voc: --checkpoint nowhere.ckpt: no such file"),
        ((devkit / "nowhere", tmp_path), r"nowhere/VOC2012: no such folder"),
        ((devkit, of(3)), r"--out .*: cannot be written"),
    ):
        with pytest.raises(SystemExit, match=message) as error:
            command(monkeypatch, *arguments)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_images(trained, tmp_path):
    _, devkit = trained
    config = {"model": {**MODEL, "m_step": {**M_STEP, "image_shape": [3, 6, 5]}}, "module": MODULE}
    saved = {checkpoints.KEY: config, "state_dict": checkpoints.build(**config).state_dict()}
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"--checkpoint .*: takes images of \(3, 6, 5\)"):
        voc.run(devkit, tmp_path, [tmp_path / "other.ckpt"], "test", tmp_path / "out", Console())
    with pytest.raises(InputError, match=r"this model takes pixels of 0 and 1"):
        voc.run(devkit, tmp_path, [ROOT / "results/checkpoints/rnn_em_seed0.ckpt"], "test", tmp_path, Console())


def test_the_real_subset_by_instance(real_devkit, tmp_path):
    data = VOCDataModule(str(real_devkit), str(tmp_path))
    assert [int((data.masks(stage, "instance") != VOID).any(2).any(1).sum()) for stage in ("train", "val", "test")] == [
        19,
        2,
        16,
    ]
