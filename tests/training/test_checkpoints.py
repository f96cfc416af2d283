import zipfile
from pathlib import Path

import pytest
import torch
from module_of_my_own import ModuleOfMyOwn
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import TinyImages, tiny_module, tiny_trainer

from nem_lightning.errors import InputError
from nem_lightning.models.em import NeuralEM
from nem_lightning.scores.rand_index import AdjustedRandIndex
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule

LIKELIHOOD = {"_target_": "nem_lightning.models.likelihoods.likelihood_for", "binary": True}
M_STEP = {"_target_": "nem_lightning.models.m_steps.RecurrentMStep", "image_shape": [1, 6, 5], "hidden_size": 8}
CONFIG = {
    "model": {
        "_target_": "nem_lightning.models.em.NeuralEM",
        "num_components": 2,
        "num_steps": 3,
        "num_starts": 1,
        "likelihood": LIKELIHOOD,
        "m_step": M_STEP,
        "loss": {
            "_target_": "nem_lightning.models.losses.NeuralEMLoss",
            "likelihood": LIKELIHOOD,
            "step_weights": [0, 1, 1],
        },
    },
    "module": {"_target_": "nem_lightning.training.module.GroupingModule", "seed": 3},
}


def with_model(**changes) -> dict:
    return {**CONFIG, "model": {**CONFIG["model"], **changes}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[GroupingModule, Path]:
    """A module that was trained, and its checkpoint."""
    folder, module = tmp_path_factory.mktemp("trained"), tiny_module()
    callbacks = [checkpoints.SaveConfig(CONFIG), ModelCheckpoint(folder, filename="model")]
    tiny_trainer(folder, callbacks=callbacks).fit(module, TinyImages())
    return module, folder / "model.ckpt"


@pytest.fixture
def saved(trained, tmp_path):
    """Write the checkpoint with changes, and give its path."""

    def write(**changes) -> Path:
        path = tmp_path / "changed.ckpt"
        torch.save({**torch.load(trained[1], weights_only=True), **changes}, path)
        return path

    return write


def with_config(saved, config: dict) -> Path:
    return saved(**{checkpoints.KEY: config})


def test_a_checkpoint_says_how_its_model_is_built(trained):
    module, path = trained
    loaded = checkpoints.load(path)
    assert loaded.num_components == 2 and loaded.num_steps == 3 and not loaded.training
    frames = torch.rand(4, 1, 1, 6, 5).round()
    one, other = (each(frames, generator=torch.Generator().manual_seed(0))[-1] for each in (module.model, loaded))
    assert torch.equal(one.mean, other.mean)


def test_a_module_for_scoring_takes_its_seed_and_scores(trained):
    _, path = trained
    module = checkpoints.load_module(path)
    assert module.seed == 3 and module.optimizer is None and module.val_set.headings == module.model.headings
    module = checkpoints.load_module(path, {"ari": AdjustedRandIndex()}, seed=4, sizes={"num_starts": 2})
    assert module.seed == 4 and module.model.num_starts == 2 and next(iter(module.val_set.headings)) == "ari"


def test_another_k_and_t(trained):
    """A list of step weights does not fit another T, so the last step is scored."""
    _, path = trained
    loaded, as_saved = checkpoints.load(path, num_components=4, num_steps=5, num_starts=2), checkpoints.load(path)
    assert isinstance(loaded, NeuralEM) and isinstance(as_saved, NeuralEM)
    trajectory = loaded(torch.rand(2, 1, 1, 6, 5).round())
    assert len(trajectory) == 5 and trajectory[0].mean.shape[1] == 4 and loaded.num_starts == 2
    assert loaded.loss.step_weights == "last" and as_saved.loss.step_weights == [0, 1, 1]
    with pytest.raises(InputError, match="num_steps=0: must be an integer of at least 1"):
        checkpoints.load(path, num_steps=0)


def test_a_size_that_the_configuration_leaves_to_the_model(saved):
    model = {name: value for name, value in CONFIG["model"].items() if name != "num_starts"}
    assert checkpoints.load(with_config(saved, {**CONFIG, "model": model}), num_starts=2).num_starts == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colour": "red"}, "cannot be built .*colour"),
        ({"_target_": "nem_lightning.models.em.Gone"}, "its model needs nem_lightning.models.em.Gone"),
    ],
)
def test_a_model_that_cannot_be_built_gets_one_line(saved, change, reason):
    with pytest.raises(InputError, match=reason) as error:
        checkpoints.load(with_config(saved, with_model(**change)))
    assert "\n" not in str(error.value)


def test_lightning_reads_no_damaged_checkpoint(saved, tmp_path):
    """``Trainer.test`` and ``Trainer.fit`` read checkpoints by ``WholeFiles``."""
    path = saved()
    content = bytearray(path.read_bytes())
    start = content.index(b"/data/0") + 200
    content[start : start + 4] = bytes(255 - value for value in content[start : start + 4])
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        checkpoints.WholeFiles().load_checkpoint(damaged)
    assert checkpoints.WholeFiles().load_checkpoint(path).keys() >= {"state_dict"}


@pytest.mark.parametrize("name", ["model", "module"])
def test_a_configuration_without_a_model_or_module(saved, name):
    with pytest.raises(InputError, match="its configuration describes no model and module"):
        checkpoints.load(with_config(saved, {**CONFIG, name: None}))


def test_classes_of_strangers_are_refused(saved, tmp_path):
    encoder = {"_target_": "os.system", "command": f"touch {tmp_path}/evil"}
    path = with_config(saved, with_model(m_step={**M_STEP, "encoder": encoder}))
    with pytest.raises(InputError, match=r"its model needs os.system; allowed are classes of nem_lightning.*trusted="):
        checkpoints.load(path)
    path = with_config(saved, {**CONFIG, "module": encoder})
    with pytest.raises(InputError, match=r"its model needs os.system;"):
        checkpoints.load(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "target",
    [
        "nem_lightning.training.checkpoints.torch.load",
        "nem_lightning.training.checkpoints.read",
        "nem_lightning.training.checkpoints.load",
        "nem_lightning.load",
        "torch.nn.functional.relu",
    ],
)
def test_what_is_no_class_of_a_trusted_package_is_refused(saved, target):
    path = with_config(saved, with_model(m_step={**M_STEP, "encoder": ({"_target_": target},)}))
    with pytest.raises(InputError, match=f"its model needs {target}"):
        checkpoints.load(path)


@pytest.mark.parametrize("name", ["model", "module"])
def test_interpolations_are_refused(saved, name):
    path = with_config(saved, {**CONFIG, name: {**CONFIG[name], "seed": "${oc.env:HOME}"}})
    with pytest.raises(InputError, match="must be a plain value"):
        checkpoints.load(path)


def test_weights_that_are_missing_or_of_another_shape(trained, saved):
    state = torch.load(trained[1], weights_only=True)["state_dict"]
    changed = {**state, "model.m_step.input_layer.weight": torch.zeros(3, 3)}
    with pytest.raises(InputError, match=r"m_step.input_layer.weight is \(3, 3\) in the checkpoint, must be \(8, 30\)"):
        checkpoints.load(saved(state_dict=changed))
    with pytest.raises(InputError, match=r"more is \(2,\) in the checkpoint, must be none"):
        checkpoints.load(saved(state_dict={**state, "more": torch.zeros(2)}))
    with pytest.raises(InputError, match=r"is none in the checkpoint"):
        checkpoints.load(saved(state_dict={}))


def test_own_classes_can_be_trusted(saved):
    path = with_config(saved, with_model(m_step={**M_STEP, "encoder": {"_target_": "flatten_of_my_own.MyFlatten"}}))
    with pytest.raises(InputError, match=r"its model needs flatten_of_my_own\.MyFlatten"):
        checkpoints.load(path)
    checkpoints.load(path, trusted=["flatten_of_my_own"])
    checkpoints.load(path, trusted="flatten_of_my_own")


def test_bad_files(trained, tmp_path):
    path = tmp_path / "model.ckpt"
    with pytest.raises(InputError, match=r"model.ckpt: no such file"):
        checkpoints.load(path)
    path.write_bytes(trained[1].read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model.ckpt: not a checkpoint, damaged or cut short"):
        checkpoints.load(path)
    path.write_text("# A heading\n")
    with pytest.raises(InputError, match=r"model.ckpt: not a checkpoint, damaged or cut short"):
        checkpoints.load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"model.ckpt: not a checkpoint, damaged or cut short"):
        checkpoints.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match=r"not a checkpoint of nem_lightning"):
        checkpoints.load(path)
    torch.save({"evil": Path}, path)
    with pytest.raises(InputError, match=r"cut short \(not what torch.save writes of tensors and plain values\)"):
        checkpoints.load(path)


def test_a_byte_flipped_anywhere_in_what_is_stored_is_refused(trained, tmp_path):
    path, whole = tmp_path / "flipped.ckpt", trained[1].read_bytes()
    with zipfile.ZipFile(trained[1]) as archive:
        parts = archive.infolist()
    positions = []
    for part in parts:
        start = part.header_offset + 30 + sum(_short(whole, part.header_offset + at) for at in (26, 28))
        assert part.compress_size == part.file_size  # stored without compression
        positions += {start, start + part.file_size // 2, start + part.file_size - 1} if part.file_size else set()
    assert len(positions) > 24
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"flipped.ckpt: not a checkpoint, damaged or cut short"):
            checkpoints.load(path)
    path.write_bytes(whole)
    checkpoints.load(path)


def _short(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def test_a_module_with_a_weight_of_its_own_is_restored_whole(tmp_path):
    """The weight is in the module, but not in its model."""
    module = tiny_module(kind=ModuleOfMyOwn)
    assert isinstance(module, ModuleOfMyOwn)
    with torch.no_grad():
        module.temperature.fill_(0.25)
    target = {"_target_": "module_of_my_own.ModuleOfMyOwn", "seed": 0}
    callbacks = [checkpoints.SaveConfig({**CONFIG, "module": target}), ModelCheckpoint(tmp_path, filename="model")]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(module, TinyImages())
    path = tmp_path / "model.ckpt"
    loaded = checkpoints.load_module(path, trusted="module_of_my_own")
    assert type(loaded) is ModuleOfMyOwn and loaded.temperature != 1
    expected = module.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in expected.items())
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]["temperature"]
    torch.save(checkpoint, path)
    with pytest.raises(
        InputError, match=r"model.ckpt: does not fit this model: temperature is none in the check"
    ) as error:
        checkpoints.load_module(path, trusted="module_of_my_own")
    assert "\n" not in str(error.value)


def test_a_bad_setting_of_the_module_has_its_full_name():
    """The name is the one that ``train.py`` prints."""
    with pytest.raises(InputError, match=r"^module\.decay=no: must be true or false"):
        checkpoints.build(CONFIG["model"], {**CONFIG["module"], "decay": "no"})


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    one, other, path = tiny_module(), tiny_module(), tmp_path / "one.ckpt"
    torch.save({checkpoints.KEY: {}, "state_dict": one.state_dict()}, path)
    for weight in other.parameters():
        torch.nn.init.ones_(weight)
    checkpoints.begin_with(path, other)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    with pytest.raises(InputError, match=r"^weights_from=.*nowhere.ckpt: no such file"):
        checkpoints.begin_with(tmp_path / "nowhere.ckpt", other)
    with pytest.raises(InputError, match=r"^weights_from=.*one.ckpt: does not fit this model"):
        checkpoints.begin_with(path, tiny_module(shape=(1, 4, 4)))
