"""Train N-EM or RNN-EM: ``python train.py --help``."""

import sys
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from nem_lightning.runs import command_line, kinds, sweeps, threads
from nem_lightning.runs.command_line import Place
from nem_lightning.runs.folder import RunFolder

threads.spin_less()  # before PyTorch is imported


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
    from pytorch_lightning.callbacks import LambdaCallback  # here, so that --help need not wait for it
    from pytorch_lightning.utilities import rank_zero_only

    from nem_lightning import figures
    from nem_lightning.training import checkpoints
    from nem_lightning.training.callbacks import require_known_monitors, require_results

    first = rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]
    command_line.set_seed(config.seed)
    datamodule = instantiate(config.data)
    config.pixels = {"shape": list(datamodule.image_shape), "binary": datamodule.binary}
    module = checkpoints.build(
        config.model, config.module, command_line.parts(config.scores), instantiate(config.optimizer)
    )
    module.model.check_images(datamodule.image_shape, datamodule.binary)
    if config.ckpt_path is not None:  # raises if the weights do not fit
        checkpoints.weights(checkpoints.read_run(config.ckpt_path), module, config.ckpt_path)
    if config.weights_from is not None:
        checkpoints.begin_with(config.weights_from, module)
    plain_config = command_line.plain(config)
    kinds.require_trainer(config.trainer)
    kinds.require_kinds("callbacks", config.callbacks)
    kinds.require_kinds("logger", config.logger)
    callbacks = command_line.parts(config.callbacks)
    require_known_monitors(callbacks, module)
    loggers = list(command_line.parts(config.logger).values())
    begin = LambdaCallback(on_train_start=lambda *_: folder.begin())
    trainer = instantiate(
        config.trainer,
        callbacks=[*callbacks.values(), checkpoints.SaveConfig(plain_config), begin],
        logger=loggers,
        plugins=[checkpoints.WholeFiles()],
    )
    require_results(trainer)
    kinds.require_clipping(trainer, bool(OmegaConf.select(config, "optimizer.fused")))
    if first:
        datamodule.prepare_data()  # errors in the data are said before a run is started
        folder.claim(plain_config)
    console = Console(quiet=not first)
    places = [Place("run folder", config.paths.run_dir)]
    if (scores := folder.scores()) is not None:
        command_line.print_saved_scores("Finished before. Test scores, by EM step", scores, console)
        command_line.print_places(places, console)
        return _number(scores["best_score"])
    if first:
        module.check_data(datamodule, "fit")  # if it raises an error, the folder is free again
    newest = folder.newest_checkpoint(config.ckpt_path)
    try:
        for logger in loggers:
            logger.log_hyperparams(plain_config)
        places += [Place("W&B run", logger.where()) for logger in loggers if hasattr(logger, "where")][:1]
        goes_on = [Place("goes on from", newest)] if newest else []
        command_line.print_places(places + goes_on, console)
        if module.has_weights:
            trainer.fit(module, datamodule, ckpt_path=newest, weights_only=True)
        folder.begin()
        fitted = fit_facts(trainer)
        best = fitted["ckpt_path"]
        trainer.test(module, datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        if trainer.is_global_zero:
            batch = next(iter(datamodule.test_dataloader()))
            generator = module.generator("test", 0)
            pictures = figures.save(module.model, batch, generator, folder.path, "test images")
            scores = {**fitted, **command_line.scores_of_test(module, "test")}
            folder.finish(scores)
            command_line.print_saved_scores("Test scores, by EM step", scores, console)
            places.append(Place("best checkpoint", best or "none saved, scores are of the last weights"))
            command_line.print_places(places + command_line.places_of(pictures), console)
        return _number(fitted["best_score"])
    finally:
        for logger in loggers:
            if hasattr(logger, "finish"):
                logger.finish(sys.exc_info()[1])


def fit_facts(trainer) -> dict[str, Any]:
    """Say what training came to: the best checkpoint and its score, epochs, and seconds over all attempts."""
    from pytorch_lightning.callbacks import Timer

    saver = trainer.checkpoint_callback
    best = saver.best_model_path if saver is not None else ""
    watched = saver.best_model_score if saver is not None and best else None  # or None if no score is watched
    timer = next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)
    return {
        "ckpt_path": best,
        "best_score": None if watched is None else watched.item(),
        "epochs": trainer.current_epoch,
        "seconds": None if timer is None else round(timer.time_elapsed("train"), 1),
    }


def _number(score: float | None) -> float:
    return float("nan") if score is None else score


if __name__ == "__main__":
    try:
        with sweeps.keep_going_without_killed_jobs():
            main()
    finally:
        sweeps.print_sweep_summary()
