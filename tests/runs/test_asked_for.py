"""A sweep's summary and exit status are about the runs that were asked for, finished or not."""

import shutil
from pathlib import Path

import pytest
from commands import TINY, Command, runs_in

ON_THE_NODE = "paths.data_dir=${oc.env:ONLY_ON_NODE}"
JOBS = "hydra/launcher=submitit_local"
OF_A_NODE = """
import os, signal
if "SUBMITIT_EXECUTOR" in os.environ:
    os.environ["ONLY_ON_NODE"] = {data!r}
    try:
        open({killed!r}, "x").close()
    except FileExistsError:
        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def data(data_dir) -> str:
    return str(data_dir)


@pytest.fixture
def sweep(tmp_path):
    """Run a sweep in the folder ``mine``, and give the lines of its summary."""

    def finish(*arguments: str, status: int = 0, **environment: str) -> list[str]:
        command = ["train.py", "-m", *TINY, "hydra.sweep.dir=mine", *arguments]
        wide = {"COLUMNS": "1000", **environment}  # each run has one line, even if names of folders are long
        printed = Command(*command, folder=tmp_path, environment=wide).end(status)
        assert "Traceback" not in printed and "ConfigStore" not in printed
        assert "Sweep mine" in printed, printed
        return [line.strip() for line in printed[printed.index("Sweep mine") :].splitlines()]

    return finish


def said_of(run: str, summary: list[str]) -> str:
    (line,) = [line for line in summary if line.split()[:1] == [run]]
    return line.removeprefix(run).strip()


def names(tmp_path: Path) -> set[str]:
    return {name for name in runs_in(tmp_path / "mine") if not name.startswith(".")}


def test_a_job_that_is_killed_before_its_folder_exists_and_settings_that_only_a_job_resolves(sweep, data, tmp_path):
    (tmp_path / "node").mkdir()
    text = OF_A_NODE.format(data=data, killed=str(tmp_path / "killed"))
    (tmp_path / "node" / "sitecustomize.py").write_text(text)
    summary = sweep(JOBS, "seed=0,1", ON_THE_NODE, status=1, PYTHONPATH=str(tmp_path / "node"))
    assert "1 of 2 runs finished." in summary and len(names(tmp_path)) == 1
    said = sorted(said_of(f"seed-{seed}", summary) for seed in (0, 1))
    assert said[0] == "did not end, or was not begun" and said[1].startswith("test AMI")
    # The same sweep with another setting: the run that is finished is refused, the other one is new.
    summary = sweep(JOBS, "seed=0,1", ON_THE_NODE, "trainer.max_epochs=2", status=1, PYTHONPATH=str(tmp_path / "node"))
    assert "1 of 2 runs finished." in summary and names(tmp_path) == {"seed-0", "seed-1"}
    said = sorted(said_of(f"seed-{seed}", summary) for seed in (0, 1))
    assert "an earlier run is" in said[0] and "2 epochs" in said[1]


def test_a_setting_that_nobody_can_resolve_fails_each_run(sweep, tmp_path):
    summary = sweep("seed=0,1", ON_THE_NODE, status=1)
    assert "0 of 2 runs finished." in summary and names(tmp_path) <= {"seed-0", "seed-1"}
    for seed in (0, 1):
        assert "ONLY_ON_NODE" in said_of(f"seed-{seed}", summary)


def test_runs_that_are_refused_are_not_called_finished(sweep, data, tmp_path):
    own = f"paths.data_dir={data}"
    assert "2 of 2 runs finished." in sweep("seed=0,1", own)
    summary = sweep("seed=0,1", own, "trainer.max_epochs=2", status=1)
    assert "0 of 2 runs finished." in summary
    for seed in (0, 1):
        assert "an earlier run is" in said_of(f"seed-{seed}", summary)
    assert "1 of 1 runs finished." in sweep("seed=0", own)  # only the run that was asked for counts
    shutil.rmtree(tmp_path / "mine" / "seed-1")
    assert "2 of 2 runs finished." in sweep("seed=0,1", own)


def test_a_key_given_twice_counts_as_it_was_given_last(sweep, data, tmp_path):
    own = f"paths.data_dir={data}"
    summary = sweep("model.num_steps=2", own, "seed=0", "model.num_steps=2,3")
    assert "2 of 2 runs finished." in summary and names(tmp_path) == {"num_steps-2_seed-0", "num_steps-3_seed-0"}
    shutil.rmtree(tmp_path / "mine")
    summary = sweep(own, "seed=0", "model.num_steps=2,3", "model.num_steps=2")
    assert "1 of 1 runs finished." in summary and names(tmp_path) == {"seed-0"}
