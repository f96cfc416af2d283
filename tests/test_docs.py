"""The examples of README and docs do what they say."""

import contextlib
import json
import os
import re
import subprocess
import sys

from conftest import ROOT


def test_a_model_a_data_set_and_a_score_as_the_page_on_extending_shows_them(tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text()
    for name, text in re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", page, flags=re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([".", str(ROOT)])
    command = [sys.executable, str(ROOT / "train.py"), "--config-dir", "my_conf", "hydra.run.dir=run", "logger=csv"]
    command += ["model=strips", "data=moving_bars", "scores=[default,purity]", "trainer=cpu"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
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
