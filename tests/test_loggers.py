import wandb

from nem_lightning.loggers import WandbLogger


def test_offline_without_an_account(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **arguments: False)
    logger = WandbLogger(project="test", save_dir=str(tmp_path))
    assert logger.where().startswith(f"offline; upload with: wandb sync {tmp_path}/wandb/offline-run-")
    logger.finish()


def test_offline_where_wandb_cannot_be_reached(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **arguments: True)
    original, modes = wandb.init, []

    def unreachable(**arguments):
        modes.append(arguments.get("mode"))
        if arguments.get("mode") != "offline":
            raise wandb.errors.CommError("no answer\nfrom the server")
        return original(**arguments)

    monkeypatch.setattr(wandb, "init", unreachable)
    logger = WandbLogger(project="test", save_dir=str(tmp_path))
    with caplog.at_level("WARNING"):
        assert logger.where().startswith("offline; upload with: wandb sync")
    assert modes == [None, "offline"]
    assert "W&B cannot be reached (no answer); this run is logged offline" in caplog.text
    logger.finish()


def test_the_variable_is_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "login", None)  # not asked
    logger = WandbLogger(project="test", save_dir=str(tmp_path))
    assert logger.where() == "disabled"
    logger.finish()


def test_a_failed_run_is_shown_as_failed(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(wandb, "finish", lambda exit_code: ended.append(exit_code))
    logger = WandbLogger(project="test", save_dir=str(tmp_path), offline=True)
    logger.finish()
    logger.finish(failed=True)
    assert ended == [0, 1]


def test_each_run_of_a_process_is_its_own(tmp_path):
    seen = set()
    for name in ("one", "two"):
        logger = WandbLogger(project="test", save_dir=str(tmp_path), name=name, offline=True)
        seen.add(logger.experiment.id)
        logger.finish()
    assert len(seen) == 2
