"""Train N-EM or RNN-EM: ``python train.py --help``."""

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from nem_lightning.runs import command_line, sweeps
from nem_lightning.runs.command_line import Place
from nem_lightning.runs.folder import RunFolder


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Compose, then train. Returns the best score that the checkpoints watch, for sweepers; NaN from a run that
    failed in a sweep."""
    sweeps.join_processes_of_job()
    with (
        sweeps.keep_going_without_failed_run(),
        RunFolder(config.paths.run_dir) as folder,
        command_line.one_line_errors(),
    ):
        sweeps.require_no_replay(config)
        return train(config, folder)
    return float("nan")


def train(config: DictConfig, folder: RunFolder) -> float:
    """Instantiate, fit, test. A run that was stopped goes on, one that is finished is left as it is."""
    from pytorch_lightning.utilities import rank_zero_only  # here, so that --help need not wait for it

    from nem_lightning.training import checkpoints
    from nem_lightning.training.callbacks import require_known_monitors

    command_line.set_seed(config.seed)
    datamodule = instantiate(config.data)
    module = instantiate(config.model)
    module.check_images(datamodule)
    if config.ckpt_path is not None:
        checkpoints.weights(
            checkpoints.read_run(config.ckpt_path), module, config.ckpt_path
        )  # raises if they do not fit
    plain_config = OmegaConf.to_container(config, resolve=True)
    callbacks = instantiate(config.callbacks)
    require_known_monitors(callbacks, module)
    if rank_zero_only.rank == 0:
        datamodule.prepare_data()  # what is wrong with the data is said before a run is started
        folder.claim(plain_config)
    console = Console(quiet=rank_zero_only.rank != 0)
    places = [Place("run folder", config.paths.run_dir)]
    if (scores := folder.scores()) is not None:
        title = "Finished before. Test scores, by EM step"
        command_line.print_scores_by_step(title, scores["headings"], scores["by_step"], console)
        command_line.print_places(places, console)
        return _number(scores["best_score"])
    newest = folder.newest_checkpoint(config.ckpt_path)
    loggers = list(instantiate(config.logger).values())
    try:
        trainer = instantiate(
            config.trainer,
            callbacks=[*callbacks.values(), checkpoints.SaveConfig(plain_config)],
            logger=loggers,
            plugins=[checkpoints.WholeFiles()],
        )
        for logger in loggers:
            logger.log_hyperparams(plain_config)
        places += runs(trainer)
        command_line.print_places([*places, *([Place("goes on from", newest)] if newest else [])], console)
        trainer.fit(module, datamodule, ckpt_path=newest, weights_only=True)
        epochs = trainer.current_epoch
        saver = trainer.checkpoint_callback
        best = saver.best_model_path if saver is not None else ""
        trainer.test(module, datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        watched = saver.best_model_score if best else None  # None, too, where the checkpoints watch no score
        best_score = None if watched is None else watched.item()
        if trainer.is_global_zero:
            places.append(Place("best checkpoint", best or "none saved, scores are of the last weights"))
            scores = command_line.scores_of_test(module, "test")
            summarise(module, datamodule, scores, folder.path, places, console)
            folder.finish({"ckpt_path": best, "best_score": best_score, "epochs": epochs, **scores})
        return _number(best_score)
    finally:
        for logger in loggers:
            if hasattr(logger, "finish"):
                logger.finish(sys.exc_info()[1])


def summarise(module, datamodule, scores, folder: Path, places: list[Place], console: Console) -> None:
    """Draw what the model finds in test images, and say how good it is and where everything lies."""
    from nem_lightning import figures

    batch = next(iter(datamodule.test_dataloader()))
    pictures = figures.save(module, batch, folder, "test images")
    title = f"Test scores, by EM step{command_line.best_of(scores['num_starts'])}"
    command_line.print_scores_by_step(title, scores["headings"], scores["by_step"], console)
    command_line.print_places([*places, *(Place(*picture) for picture in pictures.items())], console)


def _number(score: float | None) -> float:
    return float("nan") if score is None else score


def runs(trainer) -> list[Place]:
    """Where the loggers that know it say that the run is."""
    where = [logger.where() for logger in trainer.loggers if hasattr(logger, "where")]
    return [Place("W&B run", where[0])] if where else []


if __name__ == "__main__":
    try:
        with sweeps.keep_going_without_killed_jobs():
            main()
    finally:
        sweeps.print_sweep_summary()
