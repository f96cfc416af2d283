"""Every config file composes and trains."""

import inspect
from pathlib import Path

import commands
import pytest
import torch
from conftest import ROOT
from devkit import make_devkit
from digits import make_digits
from hydra.utils import get_object, instantiate
from image_files import make_images
from omegaconf import OmegaConf

import evaluate as evaluate_script
import train as train_script
from nem_lightning.datamodules import flying
from nem_lightning.errors import InputError
from nem_lightning.models.corruption import BitFlip, MaskedUniform
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.m_steps import GradientMStep, RecurrentMStep
from nem_lightning.runs.folder import RunFolder
from nem_lightning.training import checkpoints

FEW = [
    "trainer.accelerator=cpu",
    "model.num_starts=2",
    "model.num_steps=2",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
]


SMALL = {"voc": ["data.size=16", "model.m_step.hidden_size=20"]}
SMALL["voc_places"] = SMALL["voc"]
SMALL["voc_features"] = [*SMALL["voc"], "data.num_features=4"]


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def composed(name: str, overrides: list[str], tmp_path: Path, data_dir: Path):
    return commands.composed(name, f"paths.run_dir={tmp_path}/run", f"paths.data_dir={data_dir}", *overrides)


@pytest.fixture
def run(tmp_path, data_dir, capsys, monkeypatch):
    """Train with few batches of little data, and give the config and the output."""

    def train(*overrides: str):
        config = composed("train", [*FEW, *overrides], tmp_path, data_dir)
        if ".VOC" in config.data._target_ and not Path(config.data.devkit).exists():
            config.data.devkit = str(make_devkit(tmp_path / "voc"))
            config.data.cache_dir = str(tmp_path / "voc")
            config.data.batch_size = 8
        few = {stage: (name, 200) for stage, (name, _) in flying.SPLITS.items()}
        monkeypatch.setattr(flying, "SPLITS", few)
        if config.data._target_.endswith("FilesDataModule"):
            config.data.path = str(make_images(tmp_path / "images"))
            config.data.batch_size = 4
        if "mnist_dir" in config.data:
            monkeypatch.setattr("nem_lightning.datamodules.mnist.IMAGES", make_digits(tmp_path / "mnist"))
            config.data.mnist_dir = str(tmp_path / "mnist")
        with RunFolder(config.paths.run_dir) as folder:
            score = train_script.train(config, folder)
        of_loss = config.callbacks.best_checkpoint.monitor == "val/loss"
        assert 0 < score < (1000 if of_loss else 1 if config.pixels.binary else 5)
        return config, capsys.readouterr().out

    return train


UNTRAINED = ("chance", "connected_components", "mixture", "position_kmeans", "position_mixture")
STILLS_ONLY = ("reconstruction_clustering", "slot_attention", "tagger")
TRAINED = [("nem", "voc"), ("nem", "flying_shapes"), ("nem", "flying_mnist")]
TRAINED += [("rnn_em", data) for data in files("data")]
TRAINED += [(model, "shapes") for model in files("model") if model not in (*UNTRAINED, "rnn_em")]


@pytest.mark.parametrize(("model", "data"), TRAINED)
def test_every_model_and_every_data_set_trains(run, model, data):
    small = ["model.hidden_sizes=[30,20]"] if model == "tagger" else SMALL.get(data, [])
    config, printed = run(f"model={model}", f"data={data}", "logger=none", "model.num_steps=3", *small)
    run_dir = Path(config.paths.run_dir)
    for name in ("best", "last"):
        saved = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert saved["global_step"] == 2
    save_best, save_last = (config.callbacks[f"{name}_checkpoint"] for name in ("best", "last"))
    monitor = "val/loss" if model == "reconstruction_clustering" else "val/reconstruction_error"
    assert save_best.monitor == monitor and "monitor" not in save_last
    assert checkpoints.load(run_dir / "checkpoints" / "best.ckpt").num_steps == 3
    assert "Test scores, by EM step" in printed and "AMI" in printed
    for place in ("run folder", "checkpoints/best.ckpt", "groupings.png", "gallery.png"):
        assert place in printed
    expected = {".lock", "checkpoints", "config.yaml", "gallery.png", "groupings.png", "scores.json"}
    expected |= {"animation.gif"} if data.startswith("flying") else set()
    assert {path.name for path in run_dir.iterdir()} == expected


@pytest.mark.parametrize(("data", "message"), [("voc", "takes pixels of 0 and 1"), ("flying_shapes", "takes still im")])
@pytest.mark.parametrize("model", STILLS_ONLY)
def test_data_that_a_model_cannot_take(run, model, data, message):
    if (model, data) == ("slot_attention", "voc"):  # it takes real pixels
        return
    with pytest.raises(InputError, match=message):
        run(f"model={model}", f"data={data}", "logger=none", "model.num_steps=3", *SMALL["voc"][:1] * (data == "voc"))


@pytest.mark.parametrize("model", UNTRAINED)
def test_every_model_that_is_not_trained_is_evaluated(tmp_path, data_dir, capsys, model):
    overrides = [f"model={model}", "trainer.accelerator=cpu", "trainer.limit_test_batches=1", "num_components=4"]
    config = composed("evaluate", overrides, tmp_path, data_dir)
    with RunFolder(config.paths.run_dir) as folder:
        evaluate_script.evaluate(config, folder)
    assert "K=4, 64 test images of Shapes" in capsys.readouterr().out
    assert (tmp_path / "run" / "scores.json").exists() and (tmp_path / "run" / "gallery.png").exists()


@pytest.mark.parametrize("experiment", files("experiment"))
def test_every_experiment_trains(run, experiment):
    size = SMALL["voc"] if "voc" in experiment else []
    size = ["data.batch_size=2", "model.num_steps=3"] if "flying" in experiment else size
    config, _ = run(f"experiment={experiment}", "logger=none", *size)
    assert (Path(config.paths.run_dir) / "checkpoints" / "best.ckpt").exists()


def model_of(config) -> NeuralEM:
    """Give the model as train.py builds it."""
    data = instantiate(config.data)
    config.pixels = {"shape": list(data.image_shape), "binary": data.binary}
    return instantiate(config.model)


def test_published_experiments_hold_the_published_settings(tmp_path, data_dir):
    for name, target, hidden, lr in (
        ("rnn_em_shapes", "RecurrentMStep", 250, 1e-3),
        ("nem_shapes", "GradientMStep", 250, 1e-3),
        ("rnn_em_voc", "RecurrentMStep", 2000, 1e-4),
    ):
        config = composed("train", [f"experiment={name}"], tmp_path, data_dir)
        m_step, model = config.model.m_step, config.model
        assert m_step._target_.endswith(target) and m_step.hidden_size == hidden
        assert not m_step.get("layer_norm") and model.differentiate_responsibilities
        assert model.detached_epochs == 0 and not config.module.decay and config.trainer.max_epochs == 500
        assert (model.init, model.num_starts) == ("noise", 1)
        assert (model.loss.prior, model.loss.prior_weight) == (0, 1)
        assert (model.num_components, model.num_steps) == (3, 10)
        assert config.optimizer._target_ == "torch.optim.Adam" and config.optimizer.lr == lr
        assert model.loss.step_weights == "last" and config.data.batch_size == 64
        assert model.corruption.prob == 0.1
        stop = config.callbacks.early_stopping
        assert (stop.monitor, stop.patience) == ("val/reconstruction_error", 10)
        em = model_of(config)
        likelihoods = (em.likelihood, em.loss.likelihood)
        if "voc" in name:
            assert [each.sigma for each in likelihoods if isinstance(each, Gaussian)] == [0.25, 1.0]
            assert em.image_shape == (3, 64, 64) and isinstance(em.corruption, MaskedUniform)
        else:
            assert all(isinstance(each, Bernoulli) for each in likelihoods) and isinstance(em.corruption, BitFlip)
        assert not isinstance(em.m_step, GradientMStep) or em.m_step.step_size.dim() == 0


def test_the_best_known_settings_are_the_defaults(tmp_path, data_dir):
    for name, noise, starts, rate, weights in (
        ("rnn_em", 0.05, 16, 2e-2, "all"),
        ("rnn_em_accurate", 0.05, 64, 2e-2, "rising"),
        ("nem", 0.0, 32, 1e-2, "all"),
    ):
        config = composed("train", [f"model={name}"], tmp_path, data_dir)
        em = model_of(config)
        assert (em.init, em.num_starts) == ("bright_regions", starts)
        assert not em.differentiate_responsibilities
        assert isinstance(em.corruption, BitFlip) and em.corruption.prob == noise
        assert em.loss.step_weights == weights and config.optimizer.lr == rate and config.module.decay
        assert config.trainer.max_epochs == 2 and em.dark_weight == (4 if name == "rnn_em_accurate" else 1)
        if name == "nem":
            assert isinstance(em.m_step, GradientMStep) and em.m_step.step_size.shape == (250,)
        else:
            assert isinstance(em.m_step, RecurrentMStep) and isinstance(em.m_step.norm, torch.nn.LayerNorm)


@pytest.mark.parametrize("logger", files("logger"))
def test_every_logger(run, logger):
    config, printed = run(f"logger={logger}", "trainer.max_epochs=1")
    run_dir = Path(config.paths.run_dir)
    if logger == "wandb":
        (offline,) = (run_dir / "wandb").glob("offline-run-*")
        assert f"W&B run  offline; upload with: wandb sync {offline}" in printed
        assert list(offline.glob("files/media/images/val/groupings_*.png"))
    elif logger == "csv":
        header = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
        assert {"epoch", "step", "train/loss", "train/loss_intra", "val/ami_max", "val/ari", "test/confidence"} <= {
            *header
        }
        assert "num_steps: 2" in (run_dir / "csv" / "version_0" / "hparams.yaml").read_text()
    elif logger == "tensorboard":
        assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))


def test_several_loggers_at_once(run):
    config, _ = run("logger=[csv,tensorboard]")
    assert {"csv", "tensorboard"} <= {path.name for path in Path(config.paths.run_dir).iterdir()}


@pytest.mark.parametrize("trainer", files("trainer"))
def test_every_trainer(run, tmp_path, data_dir, trainer):
    if trainer == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
    elif trainer == "ddp":
        config = composed("train", ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"], tmp_path, data_dir)
        assert instantiate(config.trainer, logger=False).world_size == 2
    else:
        run(f"trainer={trainer}", "logger=none")


def test_the_image_shape_follows_the_data(tmp_path, data_dir):
    small = ["model.m_step.hidden_size=3"]
    em = model_of(composed("train", ["data.size=20", *small], tmp_path, data_dir))
    assert em.m_step.image_shape == (1, 20, 20) and em.binary
    em = model_of(composed("train", ["data=voc", "data.size=32", *small], tmp_path, data_dir))
    assert em.m_step.image_shape == (3, 32, 32) and isinstance(em.likelihood, Gaussian)


def test_real_pixels_get_a_smaller_learning_rate(tmp_path, data_dir):
    """Adam moves a Gaussian's means by the learning rate; a Bernoulli's logits may move ten times as far."""
    rates = {}
    for data in ("shapes", "voc"):
        config = composed("train", [f"data={data}"], tmp_path, data_dir)
        model_of(config)  # sets the kind of pixels
        rates[data] = config.optimizer.lr
    assert rates == {"shapes": 2e-2, "voc": 2e-3}


def test_natural_images_are_scored_by_overlap_too(tmp_path, data_dir):
    for script in ("train", "evaluate"):
        shapes, voc = (composed(script, [f"data={data}"], tmp_path, data_dir).scores for data in ("shapes", "voc"))
        assert set(shapes) == {"ami_max", "ami_arithmetic", "ari", "reconstruction_error", "confidence"}
        assert set(voc) == {*shapes, "mean_best_overlap"}


def test_a_module_of_ones_own_by_config(run):
    run(
        "logger=none",
        "model.m_step.encoder={_target_: flatten_of_my_own.MyFlatten}",
        "model.num_components=2",
        "model.num_steps=2",
    )


CLASS_FILES = [
    path
    for path in sorted((ROOT / "conf").rglob("*.yaml"))
    if path.parent.name not in ("conf", "experiment", "hydra", "paths", "hparams_search", "launcher")
]


@pytest.mark.parametrize("path", CLASS_FILES, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_a_config_names_arguments_of_its_class(path):
    config = OmegaConf.load(path)
    for node in _targets(config):
        parameters = inspect.signature(get_object(node._target_)).parameters
        takes_more = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        names = set(node) - {"_target_", "_partial_", "defaults"}
        assert takes_more or names <= set(parameters)


def _targets(node) -> list:
    """Give all parts of a configuration that have a ``_target_``."""
    found = [node] if "_target_" in node else []
    inner = [node._get_node(name) for name in node]
    return found + [target for each in inner if OmegaConf.is_dict(each) for target in _targets(each)]


def test_no_two_files_configure_one_class():
    targets = [OmegaConf.to_container(OmegaConf.load(path)) for path in CLASS_FILES]
    targets = [settings.get("_target_") for settings in targets if isinstance(settings, dict)]
    named = [target for target in targets if target]
    assert len(named) == len(set(named))
