import math
import subprocess
import sys

import pytest
from conftest import ROOT
from rich.console import Console

from nem_lightning.headings import Heading
from nem_lightning.runs.command_line import Place, print_places, print_scores_by_step
from nem_lightning.runs.settings import comparable, differences, flat

CONFIG = {
    "seed": 0,
    "model": {"num_steps": 2, "m_step": {"image_shape": [1, 28, 28], "hidden_size": 10}, "empty": {}},
    "module": {"seed": 0},
    "callbacks": {
        "mine": {"file": "/runs/one/a.txt", "other": "/runs/one_more/a.txt"},
        "progress_bar": {"leave": True},
    },
    "logger": {},
    "paths": {"run_dir": "/runs/one", "data_dir": "/data"},
}


def test_settings_have_dotted_names():
    assert flat(CONFIG)["model.m_step.hidden_size"] == 10 and flat(CONFIG)["model.empty"] == {}
    assert flat(flat(CONFIG)) == flat(CONFIG)


def test_what_a_run_computes():
    assert comparable(CONFIG, ["seed", "*.seed"]) == {
        "model.num_steps": 2,
        "model.m_step.hidden_size": 10,
        "model.empty": {},
        "callbacks.mine.file": "${paths.run_dir}/a.txt",
        "callbacks.mine.other": "/runs/one_more/a.txt",
    }


@pytest.mark.parametrize("nothing", [None, False])
def test_a_setting_that_did_not_exist_is_null_or_false(nothing):
    older = {"data": {"size": 28}}
    assert not differences(older, {"data": {"size": 28, "train_images": nothing}})
    assert not differences({"data": {"size": 28, "train_images": nothing}}, older)
    assert differences(older, {"data": {"size": 28, "train_images": 0}})
    assert differences({"data": {"train_images": True}}, {"data": {"train_images": nothing}})
    (found,) = differences(older, {"data": {"size": 28, "train_images": 9}})
    assert str(found) == "data.train_images: absent there, 9 here"
    assert differences({"data": {"augment": {"flip": True}}}, {"data": {"augment": None}})


def test_differences_are_named():
    other = {**CONFIG, "seed": False, "logger": {"csv": {"name": "csv"}}, "new": 1}
    found = differences(CONFIG, other)
    assert [str(each) for each in found] == ["new: absent there, 1 here", "seed: 0 there, False here"]
    assert not differences(CONFIG, other, but=["new", "seed"]) and not differences(CONFIG, flat(CONFIG))


def test_sigma_of_binary_pixels_does_not_count():
    binary, real = ({"pixels": {"binary": value}} for value in (True, False))
    model, other = ({"likelihood": {"sigma": s}, "loss": {"likelihood": {"sigma": 1 + s}}} for s in (0.1, 0.25))
    assert not differences({**binary, "model": model}, {**binary, "model": other})
    names = [each.name for each in differences({**real, "model": model}, {**real, "model": other})]
    assert names == ["model.likelihood.sigma", "model.loss.likelihood.sigma"]


HEADINGS = {
    "ami_max": Heading("AMI (max)"),
    "ami_arithmetic": Heading("AMI (arithmetic)"),
    "ari": Heading("ARI"),
    "reconstruction_error": Heading("squared error"),
    "confidence": Heading("confidence"),
    "loss": Heading("loss (nats)", ".5g"),
    "loss_intra": Heading(""),
    "log_likelihood": Heading("log likelihood (nats)", ".5g"),
    "mine": Heading("my own score [1/m]", ".0%"),
}


@pytest.mark.parametrize(("width", "tables"), [(70, 2), (120, 1)])
def test_a_table_of_scores_is_never_cut(capsys, width, tables):
    steps = [{name: -123.456 for name in HEADINGS} | {"ari": math.nan} for _ in range(10)]
    print_scores_by_step("Title [of] the table, by EM step", HEADINGS, steps, Console(width=width))
    printed = capsys.readouterr().out
    words = printed.split()
    for title, _ in HEADINGS.values():
        assert set(title.split()) <= set(words)
    assert max(map(len, printed.splitlines())) <= width and "…" not in printed
    assert words.count("step") == 1 + tables and words.count("-") == 10 and words.count("-12346%") == 10
    assert printed.startswith("Title [of] the table")


def test_places_are_never_cut(capsys):
    print_places([Place("here", "/a" * 50), Place("over there", "[b]")], Console(width=40))
    assert capsys.readouterr().out == f"      here  {'/a' * 50}\nover there  [b]\n"


def test_nothing_is_registered_by_accident_and_nothing_is_slow():
    code = """
import sys
from omegaconf import OmegaConf
import nem_lightning.report.page, nem_lightning.runs.command_line, nem_lightning.runs.sweeps
assert not OmegaConf.has_resolver("run_in_sweep")
import nem_lightning.runs.resolvers
assert OmegaConf.has_resolver("run_in_sweep") and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
