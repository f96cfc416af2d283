"""The models that come with the package."""

import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT
from tiny import few_shapes

from nem_lightning import GradientMStep, NeuralEM, load
from nem_lightning.errors import InputError
from nem_lightning.shipped import MODELS, path_of


def test_they_are_those_whose_scores_are_in_the_results():
    for name, of_results in (("shapes", "rnn_em_seed0"), ("shapes_nem", "nem_seed0")):
        assert path_of(name).read_bytes() == (ROOT / "results" / "checkpoints" / f"{of_results}.ckpt").read_bytes()
    table = (ROOT / "README.md").read_text()
    assert all(f"| {words.rpartition(' ')[2]} " in table for words in MODELS.values())


def test_they_are_loaded_by_name_and_a_file_of_that_name_wins(tmp_path, monkeypatch):
    assert load("shapes", num_steps=3).num_steps == 3
    with pytest.raises(InputError, match="ckpt_path=circles: no such file, nor one of the models shapes, shapes_nem"):
        load("circles")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").write_text("mine")
    with pytest.raises(InputError, match="ckpt_path=shapes: not a checkpoint"):
        load("shapes")


def test_n_em_never_lowers_the_log_likelihood():
    em = load("shapes_nem").double()
    assert isinstance(em, NeuralEM) and isinstance(em.m_step, GradientMStep)
    frames = few_shapes(30).frames.double()
    start = em.start(frames[:, 0], 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = [em.log_likelihood(frames[:, 0], each.params) for each in em.steps(start, frames, frames, 20)]
    assert (torch.stack(found).diff(dim=0) > 0).all()


def test_help_names_them():
    for script in ("evaluate", "predict"):
        page = (ROOT / "conf" / "hydra" / f"{script}.yaml").read_text()
        assert all(f"{name:<12}{words}\n" in page for name, words in MODELS.items())


def test_they_are_in_the_wheel(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert all(f"nem_lightning/shipped/{name}.ckpt" in names for name in MODELS)
    assert "nem_lightning/report/page.html" in names
