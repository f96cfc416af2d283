import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from submitit.core.core import Job
from submitit.core.utils import UncompletedJobError

from nem_lightning.errors import InputError
from nem_lightning.runs import sweeps
from nem_lightning.runs.folder import RunFolder
from nem_lightning.training import checkpoints


def save(path, global_step: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": global_step, "optimizer_states": [], checkpoints.KEY: {}}, path)
    return str(path)


def test_a_run_goes_on_from_the_checkpoint_of_the_most_steps(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.newest_checkpoint() is None
    first = save(tmp_path / "other" / "last.ckpt", 10)
    assert folder.newest_checkpoint(first) == tmp_path / "other" / "last.ckpt"
    own = tmp_path / "run" / "checkpoints"
    save(own / "best.ckpt", 5)  # taken along; no step was trained yet
    assert folder.newest_checkpoint(first) == tmp_path / "other" / "last.ckpt"
    save(own / "best.ckpt", 10)
    assert folder.newest_checkpoint(first) == own / "best.ckpt"
    save(own / "interrupted.ckpt", 12)
    save(own / "last.ckpt", 12)
    assert folder.newest_checkpoint(first) == own / "last.ckpt"
    save(own / "interrupted.ckpt", 13)
    assert folder.newest_checkpoint(first) == own / "interrupted.ckpt"
    with pytest.raises(InputError, match=r"nowhere\.ckpt: no such file"):
        folder.newest_checkpoint("nowhere.ckpt")


def test_the_same_run_goes_on_in_its_folder_and_another_is_refused(tmp_path):
    def settings(where: Path, **others) -> dict:
        callback = {"file": f"{where}/mine.txt", "dirpath": f"{where}/checkpoints"}
        model = {"num_steps": 2, **others}
        return {
            "seed": 0,
            "model": model,
            "ckpt_path": None,
            "callbacks": {"mine": callback},
            "paths": {"run_dir": str(where)},
        }

    with RunFolder(tmp_path / "one") as run:
        run.claim(settings(tmp_path / "one"))
        with pytest.raises(InputError, match="another process is running it"):
            RunFolder(tmp_path / "one").claim(settings(tmp_path / "one"))
    moved = (tmp_path / "one").rename(tmp_path / "two")
    with RunFolder(moved) as run:
        run.claim({**settings(moved), "logger": {"csv": {}}, "trainer": {"accelerator": "cpu"}})
    for others, said in (
        (settings(moved, num_steps=3), r"model\.num_steps: 2 there, 3 here"),
        (settings(moved, num_starts=3), r"model\.num_starts: absent there, 3 here"),
        ({**settings(moved), "ckpt_path": "last.ckpt"}, r"ckpt_path: None there, last\.ckpt here"),
    ):
        with pytest.raises(InputError, match=f"an earlier run is there \\({said}\\)"), RunFolder(moved) as run:
            run.claim(others)


@pytest.fixture
def in_sweep_of(monkeypatch):
    """Make this process one that started a sweep."""

    def start(folder: Path, sweeper: str = "basic") -> None:
        hydra = {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(folder)}}
        hydra["runtime"] = {"choices": {"hydra/sweeper": sweeper}}
        monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))

    return start


@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
@pytest.mark.parametrize("ending", [None, ValueError])
def test_a_killed_job_gives_a_result_while_a_sweep_runs_and_no_longer(
    in_sweep_of, tmp_path, monkeypatch, sweeper, ending
):
    in_sweep_of(tmp_path, sweeper)
    original, job = Job.results, Job(tmp_path, "1")
    watcher = SimpleNamespace(is_done=lambda *_, **__: True, get_state=lambda *_, **__: "KILLED")
    monkeypatch.setattr(job, "watcher", watcher)
    monkeypatch.setattr(Job, "_results_timeout_s", 0)
    with pytest.raises(ending or SystemExit), sweeps.keep_going_without_killed_jobs():
        (result,) = job.results()
        assert result.status == (JobStatus.COMPLETED if sweeper == "basic" else JobStatus.FAILED)
        if ending:
            raise ending
    assert Job.results is original
    with pytest.raises(UncompletedJobError):
        job.results()
    with sweeps.keep_going_without_killed_jobs():  # ends as it should, if none is killed
        pass


def test_the_summary_of_a_sweep_says_the_whole_reason_and_who_is_running(in_sweep_of, tmp_path, monkeypatch, capsys):
    in_sweep_of(tmp_path)
    with pytest.raises(InputError), RunFolder(tmp_path / "failed") as failed:
        failed.path.mkdir()
        raise InputError("add trusted=[package]")
    (tmp_path / "untested").mkdir()  # trainer.limit_test_batches=0
    (tmp_path / "untested" / "scores.json").write_text('{"by_step": [], "epochs": 7}')
    (tmp_path / "well").mkdir()
    scores = {"headings": {"x": ["", ".1f"], "y": ["my score", ".2f"]}, "by_step": [{"x": 1, "y": 2}], "epochs": 8}
    (tmp_path / "well" / "scores.json").write_text(json.dumps(scores))
    with RunFolder(tmp_path / "running") as running:
        running.claim({"seed": 0})
        with pytest.raises(SystemExit):
            sweeps.print_sweep_summary()
        printed = capsys.readouterr().out
        assert "add trusted=[package]" in printed and "2 of 4 runs finished." in printed
        assert "not tested, 7 epochs" in printed and "test my score 2.00, 8 epochs" in printed
        assert any(line.split() == ["running", "running"] for line in printed.splitlines())
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
        sweeps.print_sweep_summary()  # not a sweep
