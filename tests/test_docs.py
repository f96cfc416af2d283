"""The examples of README and docs do what they say."""

import contextlib
import json
import os
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
from commands import Command
from conftest import ROOT
from devkit import make_devkit
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate

from nem_lightning.runs import kinds


def import_from_here() -> None:
    """As ``PYTHONPATH=.`` does."""
    sys.path.insert(0, os.getcwd())


def test_a_model_a_data_set_and_a_score_as_the_page_on_extending_shows_them(tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text()
    for name, text in re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", page, flags=re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arguments = ["--config-dir", "my_conf", "hydra.run.dir=run", "logger=csv", "trainer=cpu"]
    arguments += ["model=strips", "data=moving_bars", "scores=[default,purity]"]
    Command("train.py", *arguments, folder=tmp_path, before=import_from_here).end()
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["headings"]["purity"] == ["purity", ".3f"] and 0.5 < scores["by_step"][0]["purity"] <= 1


def test_the_python_example_of_the_readme():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    found: dict = {}
    exec(example, found)
    assert found["grouping"].responsibilities.shape == (8, 3, 1, 28, 28)
    assert found["grouping"].labels.shape == (8, 28, 28) and found["grouping"].labels.max() <= 2


def test_the_notebook():
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found: dict = {}
    with contextlib.chdir(ROOT / "docs"):
        for cell in cells:
            exec(cell.removeprefix("%matplotlib inline\n"), found)
    assert found["four"][-1].responsibilities.shape == (12, 4, 1, 28, 28) and len(found["four"]) == 15
    assert found["num_components"] == 4 and 0.7 < found["ami"].compute() < 0.85  # as the notebook says


def commands() -> list[str]:
    """Every ``python ...`` command in README, docs and the help of the scripts, without its comment."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "conf" / "hydra").glob("*.yaml")]
    found = re.findall(
        r"python ((?:train|evaluate)\.py|-m [a-z_.]+)((?: [^ `#|&\n)]+)*)", "\n".join(map(Path.read_text, pages))
    )
    return sorted({f"{script}{arguments}" for script, arguments in found if "$g" not in arguments})


FITTING = {"/path/to/VOCdevkit": "{devkit}", "outputs/RUN": "{run}", "outputs/<run>": "{run}", "...": "{checkpoint}"}
FITTING |= {
    "results/checkpoints/": f"{ROOT}/results/checkpoints/",
    "seed=S": "seed=3",
    "$SLURM_JOB_ID": "7",
    "<time>": "mine",
}


@pytest.mark.parametrize("command", [each for each in commands() if re.match(r"(train|evaluate)\.py", each)])
def test_a_command_composes_and_its_parts_can_be_built(command, tmp_path, data_dir):
    """Its data, model, callbacks and loggers; :mod:`test_configs` trains each of them."""
    for words, value in FITTING.items():
        command = command.replace(words, value)
    script, *arguments = command.format(
        devkit=make_devkit(tmp_path), run=tmp_path / "run", checkpoint=CHECKPOINT
    ).split()
    if arguments == ["--help"] or "--config-dir" in arguments:  # tested above, and in test_cli
        return
    is_sweep, overrides = "-m" in arguments, [each for each in arguments if each != "-m"]
    if is_sweep:
        parsed = OverridesParser.create().parse_overrides(overrides)
        own = [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in parsed if not o.is_sweep_override()]
        overrides = [*BasicSweeper.split_arguments([o for o in parsed if o.is_sweep_override()], None)[0][0], *own]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        places = [f"paths.run_dir={tmp_path}/run", f"paths.data_dir={data_dir}"]
        config = compose(Path(script).stem, overrides=[*places, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    data = instantiate(config.data)
    assert instantiate(config.scores)
    if script == "train.py":
        config.pixels = {"shape": list(data.image_shape), "binary": data.binary}
        instantiate(config.model).check_images(data.image_shape, data.binary)
        kinds.require_kinds("callbacks", config.callbacks)
    else:
        assert config.ckpt_path


CHECKPOINT = ROOT / "results" / "checkpoints" / "rnn_em_seed0.ckpt"


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("-m ")])
def test_a_command_of_a_module_takes_its_options(command, monkeypatch, capsys):
    _, name, *options = command.split()
    names = {option.partition("=")[0] for option in options if option.startswith("--")}
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit), warnings.catch_warnings(action="ignore"):  # of a module that is imported already
        runpy.run_module(name, run_name="__main__")
    printed = capsys.readouterr().out
    assert all(option in printed for option in names)
    for task in [each for each in options[:1] if re.fullmatch("[a-z]+", each)]:
        assert task in printed
