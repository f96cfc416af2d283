"""The examples of README and docs do what they say."""

import contextlib
import json
import re
import runpy
import warnings
from pathlib import Path

import pytest
from commands import Command, composed
from conftest import FEW, ROOT
from devkit import make_devkit
from digits import make_digits
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from image_files import make_images

import evaluate
import predict
import train
from nem_lightning import figures
from nem_lightning.datamodules import flying, mnist, shapes
from nem_lightning.runs.folder import RunFolder


def test_a_model_a_data_set_and_a_score_as_the_page_on_extending_shows_them(tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text()
    for name, text in re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", page, flags=re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arguments = ["--config-dir", "my_conf", "hydra.run.dir=run", "logger=csv", "trainer=cpu"]
    arguments += ["model=strips", "data=moving_bars", "scores=[default,purity]"]
    Command("train.py", *arguments, folder=tmp_path, environment={"PYTHONPATH": "."}).end()
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["headings"]["purity"] == ["purity", ".3f"] and 0.5 < scores["by_step"][0]["purity"] <= 1


def test_the_python_example_of_the_readme():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    found: dict = {}
    exec(example, found)
    assert found["grouping"].responsibilities.shape == (8, 3, 1, 28, 28)
    assert found["grouping"].labels.shape == (8, 28, 28) and found["grouping"].labels.max() <= 2


def test_the_python_example_of_the_page_on_own_images():
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_images.md").read_text(), flags=re.DOTALL)[0]
    found: dict = {}
    with contextlib.chdir(ROOT):
        exec(example, found)
    labels, images = found["groups"].labels, found["images"]
    assert not labels[~images].any() and len(set(labels[0, 3:9, 3:9].flat)) == 1
    assert labels[0, 3, 3] != labels[0, 15, 12]


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
    """Give every ``python ...`` command in README, docs and the help of the scripts, without its comment."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "conf" / "hydra").glob("*.yaml")]
    text = "\n".join(map(Path.read_text, pages))
    found = re.findall(r"python ((?:train|evaluate|predict)\.py|-m [a-z_.]+)((?: [^ `#|&\n)]+)*)", text)
    return sorted({f"{script}{arguments}" for script, arguments in found if "$g" not in arguments})


FITTING = {
    "/path/to/VOCdevkit": "{devkit}",
    "outputs/stage1/checkpoints/best.ckpt": "{digits}",
    "outputs/stage2/checkpoints/best.ckpt": "{digits}",
    "outputs/stage3/checkpoints/best.ckpt": "{digits}",
    "outputs/RUN/checkpoints/last.ckpt": "{last}",
    "outputs/RUN/checkpoints/best.ckpt": "{checkpoint}",
    "outputs/<run>/checkpoints/best.ckpt": "{checkpoint}",
    "ckpt_path=...": "ckpt_path={checkpoint}",
    "results/checkpoints/": f"{ROOT}/results/checkpoints/",
    "seed=S": "seed=3",
    "=my_images.npy": "={images}.npy",
    "=my_images": "={images}",
    "=my_groups": "={groups}",
    "=my_cases/coins": "={images}",
    "$SLURM_JOB_ID": "7",
}
STEPS = {"train": "model.num_steps", "evaluate": "num_steps", "predict": "num_steps"}
SMALL = {
    "train": [
        *("model.m_step.hidden_size=10", "model.num_starts=2", "data.batch_size=2", "trainer.max_epochs=2"),
        *(f"trainer.limit_{stage}_batches=1" for stage in ("train", "val", "test")),
        *("trainer.log_every_n_steps=1", "trainer.accelerator=cpu", "logger=csv"),
    ],
    "evaluate": ["data.batch_size=2", "trainer.limit_test_batches=1", "trainer.accelerator=cpu"],
    "predict": ["num_starts=1"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, data_dir):
    """Make what the commands need: data sets, and the runs of the pages' earlier commands."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flying, "SPLITS", {stage: (name, 40) for stage, (name, _) in flying.SPLITS.items()})
        patch.setattr(shapes, "SPLITS", FEW)
        patch.setattr(mnist, "IMAGES", make_digits(folder / "mnist"))
        devkit, of_data = make_devkit(folder), [f"paths.data_dir={data_dir}", f"data.mnist_dir={folder}/mnist"]
        best = "{}/checkpoints/best.ckpt"
        found = {"devkit": str(devkit), "data": data_dir, "mnist": f"{folder}/mnist"}
        found["images"] = str(make_images(folder / "images"))
        found["last"] = f"{trained(folder / 'run', of_data[:1])}/checkpoints/last.ckpt"
        found["digits"] = best.format(trained(folder / "digits", [*of_data, "experiment=flying_mnist_sprites"]))
        voc = ["data=voc", f"data.devkit={devkit}", f"data.cache_dir={folder}", "data.size=16"]
        found["voc"] = best.format(trained(folder / "voc", [*of_data[:1], *voc]))
        yield found


def trained(folder: Path, overrides: list[str]) -> Path:
    config = composed("train", *SMALL["train"], *overrides, f"paths.run_dir={folder}")
    with RunFolder(folder) as run:
        train.train(config, run)
    return folder


def to_run() -> list[str]:
    """Give the commands of the scripts.

    If the first runs of some differ only in folders and launchers, give only the longest of these.
    """
    kept = {}
    for command in sorted(commands(), key=len):
        script, *arguments = command.split()
        ours = frozenset(each.partition(",")[0] for each in arguments if not each.startswith(("hydra", "-m")))
        if script != "-m":
            kept[script, ours] = command
    return sorted(kept.values())


@pytest.mark.parametrize("command", to_run())
def test_a_command_runs(command, tmp_path, places, monkeypatch):
    """The command runs in its smallest form: few images, few units, no pictures; of a sweep, only the first run."""
    nothing = figures.Pictures(tmp_path / "none", tmp_path / "none", None)
    monkeypatch.setattr(figures, "save", lambda *_: nothing)
    for words, value in FITTING.items():
        command = command.replace(words, value)
    checkpoint = places["voc"] if "data=voc" in command else CHECKPOINT
    script, *arguments = command.format(checkpoint=checkpoint, groups=tmp_path / "groups", **places).split()
    if arguments == ["..."]:  # of a help, with what follows
        return
    if arguments == ["--help"] or "--config-dir" in arguments:  # other tests here and in test_cli run these
        return
    parsed = OverridesParser.create().parse_overrides([each for each in arguments if each != "-m"])
    swept = [each for each in parsed if each.is_sweep_override()]
    own = [f"{each.get_key_element()}={each.get_value_element_as_str()}" for each in parsed if each not in swept]
    own += BasicSweeper.split_arguments(swept, None)[0][0]
    script = script.removesuffix(".py")
    given = {each.partition("=")[0] for each in own}
    small = [each for each in SMALL[script] if script == "train" or each.partition("=")[0] not in given]
    small += [f"{name}=2" for name in (STEPS[script],) if name not in given]
    if any(each in command for each in (*NO_M_STEP, "/results/checkpoints/")):  # the shipped weights have 250 units
        small = [each for each in small if not each.startswith("model.m_step.")]
    if "mnist" in command:
        small.append(f"data.mnist_dir={places['mnist']}")
    if "data=voc" in command or "_voc" in command:
        small += [f"data.cache_dir={tmp_path}", "data.size=16"]
    if "trainer=ddp" in own:
        own += [*small, "trainer.devices=2", f"paths.data_dir={places['data']}"]
        Command("train.py", *own, folder=tmp_path).end()
        return
    if script == "predict":
        predict.predict(composed(script, *own, *small, f"paths.data_dir={tmp_path}"))
        assert (tmp_path / "groups" / "contact_sheet.png").exists()
        return
    config = composed(script, *own, *small, f"paths.run_dir={tmp_path}/run", f"paths.data_dir={places['data']}")
    with RunFolder(tmp_path / "run") as folder:
        train.train(config, folder) if script == "train" else evaluate.evaluate(config, folder)
    assert len(json.loads((tmp_path / "run" / "scores.json").read_text())["by_step"]) >= 1


NO_M_STEP = ("reconstruction_clustering", "model=tagger", "model=slot_attention")
CHECKPOINT = ROOT / "results" / "checkpoints" / "rnn_em_seed0.ckpt"


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("-m ")])
def test_a_command_of_a_module_takes_its_options(command, monkeypatch, capsys):
    _, name, *options = command.split()
    names = {option.partition("=")[0] for option in options if option.startswith("--")}
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit), warnings.catch_warnings(action="ignore"):  # runpy warns of imported modules
        runpy.run_module(name, run_name="__main__")
    printed = capsys.readouterr().out
    assert all(option in printed for option in names)
    for task in [each for each in options[:1] if re.fullmatch("[a-z]+", each)]:
        assert task in printed
