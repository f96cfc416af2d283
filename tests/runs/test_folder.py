import pytest
import torch

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


def test_the_summary_of_a_sweep_says_the_whole_reason_and_who_is_running(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "_SWEEPS", [tmp_path])
    with pytest.raises(InputError), RunFolder(tmp_path / "failed") as failed:
        failed.path.mkdir()
        raise InputError("add trusted=[package]")
    (tmp_path / "untested").mkdir()  # trainer.limit_test_batches=0
    (tmp_path / "untested" / "scores.json").write_text('{"by_step": [], "epochs": 7}')
    with RunFolder(tmp_path / "running") as running:
        running.claim({"seed": 0})
        with pytest.raises(SystemExit):
            sweeps.say_how_it_went()
        printed = capsys.readouterr().out
        assert "add trusted=[package]" in printed and "1 of 3 runs finished." in printed
        assert "not tested, 7 epochs" in printed
        assert any(line.split() == ["running", "running"] for line in printed.splitlines())
        monkeypatch.setattr(sweeps, "_SWEEPS", [])
        sweeps.say_how_it_went()  # not a sweep
