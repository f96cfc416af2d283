"""The two rules that hold the floors apart."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "nem_lightning"
SCIENCE = {
    "errors",
    "likelihoods",
    "m_steps",
    "starts",
    "em",
    "losses",
    "corruption",
    "metrics",
    "overlap",
    "fast_path",
}
FRAMEWORKS = {"pytorch_lightning", "hydra", "omegaconf", "wandb"}
READS_HYDRA = {"checkpoint.py", "cli.py", "sweeps.py"}  # builds a checkpoint's model; serve train.py and evaluate.py


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", sorted(SCIENCE))
def test_the_science_needs_no_framework(name):
    found = imports(PACKAGE / f"{name}.py")
    assert not {module.split(".")[0] for module in found} & FRAMEWORKS
    own = {module.split(".")[1] for module in found if module.startswith("nem_lightning.")}
    assert own <= SCIENCE


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_classes_take_plain_arguments_not_configs(path):
    found = {module.split(".")[0] for module in imports(path)}
    assert path.name in READS_HYDRA or not found & {"hydra", "omegaconf"}
