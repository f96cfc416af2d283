"""Both commands run with a user's own model, data of sequences and score, by settings alone."""

import json
from pathlib import Path

import pytest
import torch
from commands import Command
from conftest import ROOT

CONFIGS = {
    "model/nearest_pixels.yaml": """
_target_: seam_of_my_own.NearestPixels
image_shape: ${pixels.shape}
binary: ${pixels.binary}
num_components: 2
num_steps: 3
num_starts: 1
""",
    "model/shade.yaml": """
defaults: [nearest_pixels, _self_]
_target_: seam_of_my_own.Shade
""",
    "data/moving_bars.yaml": """
_target_: seam_of_my_own.MovingBars
num_frames: 4
seed: ${seed}
""",
    "scores/agreement.yaml": """
agreement:
  _target_: seam_of_my_own.Agreement
""",
}
OWN = ["data=moving_bars", "scores=[default,agreement]", "trainer=cpu"]
FEW = [*OWN, "logger=csv", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
HEADING = ["agreement", ".2%"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a command with the configurations above, and give its folder, its scores and its output."""
    folder = tmp_path_factory.mktemp("seam")
    for name, text in CONFIGS.items():
        path = folder / "my_conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def finish(script: str, name: str, *arguments: str) -> tuple[Path, dict, str]:
        arguments = ("--config-dir", "my_conf", f"hydra.run.dir={name}", *arguments)
        printed = Command(
            script, *arguments, folder=folder, environment={"COLUMNS": "200", "PYTHONPATH": str(ROOT / "tests")}
        ).end()
        assert "Traceback" not in printed
        for picture in ("groupings.png", "gallery.png"):
            assert (folder / name / picture).stat().st_size > 1000
        return folder / name, json.loads((folder / name / "scores.json").read_text()), printed

    return finish


def test_a_model_without_weights_is_scored_and_not_fitted(run):
    folder, scores, printed = run("train.py", "nearest_pixels", *FEW, "model=nearest_pixels")
    assert not (folder / "checkpoints").exists() and scores["epochs"] == 0 and scores["best_score"] is None
    assert scores["headings"]["agreement"] == HEADING and scores["headings"]["spread"] == ["spread", ".1f"]
    assert len(scores["by_step"]) == 3 and scores["num_images"] == 32
    assert 0.5 <= scores["by_step"][-1]["agreement"] <= 1 and scores["by_step"][-1]["spread"] > 0
    assert "agreement" in printed and f"{scores['by_step'][-1]['agreement']:.2%}" in printed
    assert scores["by_step"][0]["reconstruction_error"] is None  # the model has no means


def test_a_model_of_ones_own_is_trained(run):
    folder, scores, _ = run("train.py", "shade", *FEW, "model=shade")
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["global_step"] > 0 and (saved["state_dict"]["model.grey"] != 0.5).all()
    assert scores["headings"].keys() == scores["by_step"][-1].keys() and "loss" not in scores["headings"]
    best = f"ckpt_path={folder}/checkpoints/best.ckpt"
    _, again, _ = run("evaluate.py", "shade_again", *OWN, best, "trusted=[seam_of_my_own]", "num_steps=2")
    assert again["by_step"] == scores["by_step"][:2]


def test_neural_em_is_trained_and_evaluated_on_sequences(run):
    small = ["model.num_components=2", "model.num_steps=3", "model.num_starts=2", "model.m_step.hidden_size=10"]
    folder, scores, _ = run("train.py", "rnn_em", *FEW, *small)
    assert scores["headings"]["agreement"] == HEADING and len(scores["by_step"]) == 3
    best = f"ckpt_path={folder}/checkpoints/best.ckpt"
    _, found, printed = run("evaluate.py", "evaluated", *OWN, best, "split=val", "data.num_frames=6", "num_steps=5")
    assert found["headings"] == scores["headings"] and found["num_images"] == 32 and found["split"] == "val"
    assert len(found["by_step"]) == 5 and found["num_steps"] == 5
    assert f"{found['by_step'][-1]['agreement']:.2%}" in printed
