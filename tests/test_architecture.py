"""The rules about which floor of the package may import which."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import nem_lightning

PACKAGE = ROOT / "nem_lightning"
FLOORS = [
    {"errors", "headings", "files", "shipped"},
    {"models", "scores"},
    {"datamodules", "training", "runs", "figures", "mosaics", "colours"},
    {"report", "predictions", "to_onnx"},
]
FRAMEWORKS = {"pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "wandb"}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{path}: a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> set[str]:
    """Give the parts of the package that a file imports: "errors", "models", "models.grouping", ..."""
    names = {module.removeprefix("nem_lightning.") for module in imports(path) if module.startswith("nem_lightning.")}
    return names | {name.partition(".")[0] for name in names}


def packages(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


def modules_of(*parts: str) -> list[Path]:
    return [path for path in MODULES if path.parts[0].removesuffix(".py") in parts]


each_path = functools.partial(pytest.mark.parametrize, "path", ids=str)


def test_every_part_has_a_floor():
    parts = {path.parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert parts == set().union(*FLOORS)


@pytest.mark.parametrize("floor", range(4))
def test_a_floor_imports_nothing_of_a_higher_one(floor):
    higher = set().union(*FLOORS[floor + 1 :])
    for path in modules_of(*FLOORS[floor]):
        assert not own(path) & higher, path


@each_path(modules_of(*FLOORS[0], *FLOORS[1]))
def test_the_science_needs_no_framework(path):
    assert not packages(path) & FRAMEWORKS


@each_path(modules_of(*FLOORS[0]))
def test_the_ground_floor_needs_no_pytorch(path):
    assert "torch" not in packages(path)


def test_models_know_no_scores_and_scores_only_what_a_grouping_is():
    for path in modules_of("models"):
        assert "scores" not in own(path), path
    for path in modules_of("scores"):
        assert {name for name in own(path) if name.startswith("models.")} <= {
            "models.grouping",
            "models.grouping.Grouping",
            "models.grouping.GroupingModel",
        }, path


@each_path(modules_of("report"))
def test_the_report_reads_files_only(path):
    assert "torch" not in packages(path)
    assert {name.partition(".")[0] for name in own(path)} <= {"report", "runs", "headings", "errors", "files"}


@each_path(MODULES)
def test_classes_take_plain_arguments_not_configs(path):
    reads_hydra = path == Path("training/checkpoints.py") or path.parts[0] == "runs"
    assert reads_hydra or not packages(path) & {"hydra", "omegaconf"}


def test_the_package_is_imported_without_pytorch_and_has_what_it_names():
    code = "import sys, nem_lightning; dir(nem_lightning); assert not {'torch', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert {"NeuralEM", "Grouping", "GroupingModel", "load"} <= set(nem_lightning.__all__) <= set(dir(nem_lightning))
    assert set(nem_lightning.__all__) == set(nem_lightning._PLACES)
    for name in nem_lightning.__all__:
        assert getattr(nem_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = nem_lightning.nothing
