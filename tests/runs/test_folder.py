import json
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console
from submitit.core.core import Job
from submitit.core.utils import UncompletedJobError

from nem_lightning.errors import InputError
from nem_lightning.runs import command_line, sweeps
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
    save(own / "best.ckpt", 5)  # copied from the other run; this run has not trained a step yet
    assert folder.newest_checkpoint(first) == tmp_path / "other" / "last.ckpt"
    save(own / "best.ckpt", 10)
    save(own / "last.ckpt", 5)  # the run was killed before it saved this file again
    assert folder.newest_checkpoint(first) == own / "best.ckpt"
    assert (own / "last.ckpt").read_bytes() == (own / "best.ckpt").read_bytes()
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
        with pytest.raises(InputError, match="another process is running it"), RunFolder(tmp_path / "one") as other:
            other.claim(settings(tmp_path / "one"))
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
    """Make this process look like one that started a sweep."""

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
    with sweeps.keep_going_without_killed_jobs():  # no error if no job is killed
        pass


def test_the_summary_of_a_sweep_is_about_the_runs_that_were_asked_for(in_sweep_of, tmp_path, monkeypatch, capsys):
    in_sweep_of(tmp_path)
    monkeypatch.setenv(sweeps.SWEEP, "this")
    outcomes = tmp_path / ".outcomes" / "this"
    outcomes.mkdir(parents=True)
    asked = ["failed", "untested", "well", "running", "damaged", "killed", "never"]
    (outcomes / sweeps.ASKED).write_text(json.dumps(asked))
    (outcomes / "failed").write_text("add trusted=[package]")
    (outcomes / ".well.partial").write_text("")  # the job was killed while it wrote
    for name in ("untested", "well", "damaged"):
        (outcomes / name).write_text(sweeps.FINISHED)
    (tmp_path / "untested").mkdir()  # trainer.limit_test_batches=0
    (tmp_path / "untested" / "scores.json").write_text('{"by_step": [], "headings": {}, "epochs": 7}')
    for name in ("well", "of_another_sweep"):
        (tmp_path / name).mkdir()
        scores = {"headings": {"x": ["", ".1f"], "y": ["my score", ".2f"]}, "by_step": [{"x": 1, "y": 2}], "epochs": 8}
        (tmp_path / name / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "scores.json").touch()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "error.txt").write_text("Traceback\n\nthe disk is full\n")
    with RunFolder(tmp_path / "running") as running:
        running.claim({"seed": 0})
        with pytest.raises(SystemExit) as ended:
            sweeps.print_sweep_summary()
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    lines = [line.strip() for line in printed.splitlines()]
    assert "add trusted=[package]" in printed and "3 of 7 runs finished." in printed
    assert "not tested, 7 epochs" in printed and "test my score 2.00, 8 epochs" in printed
    assert "of_another_sweep" not in printed and "the disk is full" in printed and "is damaged" in printed
    assert any(line.split() == ["running", "running"] for line in lines)
    assert any(line.startswith("never") and line.endswith("did not end, or was not begun") for line in lines)
    assert not outcomes.parent.exists()  # the notes about the sweep are gone
    sweeps.print_sweep_summary()  # nothing was started
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    sweeps.print_sweep_summary()  # not a sweep
    assert capsys.readouterr().out == ""


def test_a_folder_is_free_again_if_the_run_fails_before_it_begins(tmp_path):
    for begins in (False, True):
        with pytest.raises(RuntimeError), RunFolder(tmp_path / "run") as run:
            run.claim({"seed": int(begins)})
            if begins:
                run.begin()
            raise RuntimeError("no more memory")
        assert (tmp_path / "run" / "config.yaml").exists() == begins
        assert run.reason() == "no more memory"
    with pytest.raises(InputError, match="seed: 1 there, 2 here"), RunFolder(tmp_path / "run") as run:
        run.claim({"seed": 2})
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("text", ["", "seed: [1", "\0", "just words", "- 1\n- 2\n"])
def test_a_damaged_configuration_gets_one_line_and_is_left_alone(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{path}: is damaged or cut short") as raised, RunFolder(tmp_path) as run:
        run.claim({"seed": 0})
    assert "\n" not in str(raised.value) and "choose another folder" in str(raised.value)
    assert path.read_text() == text and not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize(
    "text", [b"", b'{"by_step": [{"ami_max"', b"[1, 2]", b"{}", b'{"by_step": 3, "headings": {}}', b"\xff\xfe", b"7"]
)
def test_damaged_scores_get_one_line_and_are_left_alone(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=f"^{path}: .*delete the file, and the same command writes it") as raised:
        RunFolder(tmp_path).scores()
    assert "\n" not in str(raised.value) and path.read_bytes() == text


def test_a_reason_that_is_no_text_ends_nothing(tmp_path):
    (tmp_path / "error.txt").write_bytes(b"\xff\xfe\n\xfe")
    assert RunFolder(tmp_path).reason() == "\N{REPLACEMENT CHARACTER}"
    (tmp_path / "error.txt").write_bytes(b"")
    assert RunFolder(tmp_path).reason() is None
    (tmp_path / "error.txt").unlink()
    (tmp_path / "error.txt").mkdir()
    assert RunFolder(tmp_path).reason() is None


def test_scores_are_strict_json(tmp_path, capsys):
    def refuse(name: str) -> NoReturn:
        raise AssertionError(name)

    by_step = [{"ami_max": float("nan"), "error": 0.5}, {"ami_max": float("-inf"), "error": 0.25}]
    folder = RunFolder(tmp_path)
    scores = {"num_starts": 1, "best_score": float("inf"), "headings": {"ami_max": ["AMI", ".3f"]}, "by_step": by_step}
    folder.finish(scores)
    found = json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)
    assert found == folder.scores() and found["best_score"] is None
    assert found["by_step"] == [{"ami_max": None, "error": 0.5}, {"ami_max": None, "error": 0.25}]
    command_line.print_saved_scores("Scores", found, Console(width=80))
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-3:-1]] == [["1", "-"], ["2", "-"]]
