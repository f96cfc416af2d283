import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import TinyImages, tiny_module, tiny_trainer

from nem_lightning.errors import InputError
from nem_lightning.training import checkpoints

LIKELIHOOD = {"_target_": "nem_lightning.models.likelihoods.Bernoulli"}
CONFIG = {
    "model": {
        "_target_": "nem_lightning.training.module.NeuralEMModule",
        "num_components": 2,
        "num_steps": 3,
        "em": {
            "_target_": "nem_lightning.models.em.NeuralEM",
            "likelihood": LIKELIHOOD,
            "m_step": {
                "_target_": "nem_lightning.models.m_steps.RecurrentMStep",
                "image_shape": [1, 6, 5],
                "hidden_size": 8,
            },
        },
        "loss": {
            "_target_": "nem_lightning.models.losses.NeuralEMLoss",
            "likelihood": LIKELIHOOD,
            "step_weights": [0, 1, 1],
        },
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3},
    }
}


def save(tmp_path, config=CONFIG):
    module = tiny_module()
    callbacks = [checkpoints.SaveConfig(config), ModelCheckpoint(tmp_path, filename="model")]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(module, TinyImages())
    return module, tmp_path / "model.ckpt"


def test_a_checkpoint_says_how_its_model_is_built(tmp_path):
    module, path = save(tmp_path)
    loaded = checkpoints.load(path)
    assert loaded.num_components == 2 and loaded.num_steps == 3
    image = torch.rand(4, 1, 6, 5).round()
    one, other = (each(image, generator=torch.Generator().manual_seed(0))[-1] for each in (module, loaded))
    assert torch.equal(one.mean, other.mean)


def test_another_k_and_t(tmp_path):
    _, path = save(tmp_path)
    loaded = checkpoints.load(path, num_components=4, num_steps=5)
    trajectory = loaded(torch.rand(2, 1, 6, 5).round())
    assert len(trajectory) == 5 and trajectory[0].mean.shape[1] == 4
    with pytest.raises(InputError, match="num_steps=0: must be an integer of at least 1"):
        checkpoints.load(path, num_steps=0)


def test_classes_of_strangers_are_refused(tmp_path):
    encoder = {"_target_": "os.system", "command": f"touch {tmp_path}/evil"}
    model = CONFIG["model"]
    m_step = {**model["em"]["m_step"], "encoder": encoder}
    _, path = save(tmp_path, {"model": {**model, "em": {**model["em"], "m_step": m_step}}})
    with pytest.raises(InputError, match=r"its model needs os.system; allowed are classes of nem_lightning.*trusted="):
        checkpoints.load(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "target",
    [
        "nem_lightning.training.checkpoints.torch.load",
        "nem_lightning.training.checkpoints.read",
        "torch.nn.functional.relu",
    ],
)
def test_what_is_no_class_of_a_trusted_package_is_refused(tmp_path, target):
    model = CONFIG["model"]
    m_step = {**model["em"]["m_step"], "encoder": ({"_target_": target},)}
    _, path = save(tmp_path, {"model": {**model, "em": {**model["em"], "m_step": m_step}}})
    with pytest.raises(InputError, match=f"its model needs {target}"):
        checkpoints.load(path)


def test_interpolations_are_refused(tmp_path):
    _, path = save(tmp_path, {"model": {**CONFIG["model"], "seed": "${oc.env:HOME}"}})
    with pytest.raises(InputError, match="must be a plain value"):
        checkpoints.load(path)


def test_weights_that_are_missing_or_of_another_shape(tmp_path):
    _, path = save(tmp_path)
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["em.m_step.input_layer.weight"] = torch.zeros(3, 3)
    torch.save(saved, path)
    with pytest.raises(InputError, match=r"m_step.input_layer.weight is \(3, 3\) in the checkpoint, must be \(8, 30\)"):
        checkpoints.load(path)
    torch.save({**saved, "state_dict": {}}, path)
    with pytest.raises(InputError, match=r"is none in the checkpoint"):
        checkpoints.load(path)


def test_own_classes_can_be_trusted(tmp_path):
    model = CONFIG["model"]
    m_step = {**model["em"]["m_step"], "encoder": {"_target_": "flatten_of_my_own.MyFlatten"}}
    _, path = save(tmp_path, {"model": {**model, "em": {**model["em"], "m_step": m_step}}})
    checkpoints.load(path, trusted=["flatten_of_my_own"])
    checkpoints.load(path, trusted="flatten_of_my_own")


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.ckpt: no such file"):
        checkpoints.load(tmp_path / "nowhere.ckpt")
    _, path = save(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model.ckpt: not a checkpoint, or cut short"):
        checkpoints.load(path)
    path.write_text("# A heading\n")
    with pytest.raises(InputError, match=r"cut short \(not what torch.save writes of tensors and plain values\)"):
        checkpoints.load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"model.ckpt: not a checkpoint, or cut short"):
        checkpoints.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match=r"not a checkpoint of nem_lightning"):
        checkpoints.load(path)
