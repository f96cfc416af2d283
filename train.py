"""Train N-EM or RNN-EM: ``python train.py --help``."""

import sys
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from nem_lightning import checkpoint, cli, figures


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Compose, then train. Returns the best validation reconstruction error, for sweepers that minimise it."""
    with cli.one_line_errors():
        cli.require_no_replay(config)
        return train(config)


def train(config: DictConfig) -> float:
    """Instantiate, fit, test."""
    cli.set_seed(config.seed)
    datamodule = instantiate(config.data)
    module = instantiate(config.model)
    module.check_images(datamodule)
    if config.ckpt_path is not None:
        checkpoint.weights(checkpoint.read(config.ckpt_path), module, config.ckpt_path)  # raises where they do not fit
    plain_config = OmegaConf.to_container(config, resolve=True)
    callbacks = [*instantiate(config.callbacks).values(), checkpoint.SaveConfig(plain_config)]
    if rank_zero_only.rank == 0:
        datamodule.prepare_data()  # what is wrong with the data is said before a run is started
    cli.claim_run_folder(config)
    loggers = list(instantiate(config.logger).values())
    try:
        trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
        for logger in loggers:
            logger.log_hyperparams(plain_config)
        console = Console(quiet=not trainer.is_global_zero)
        places = {"run folder": config.paths.run_dir, **runs(trainer)}
        cli.print_places(places, console)
        trainer.fit(module, datamodule, ckpt_path=config.ckpt_path, weights_only=True)
        saver = trainer.checkpoint_callback
        best = saver.best_model_path if saver is not None else ""
        trainer.test(module, datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        if trainer.is_global_zero:
            places |= {"best checkpoint": best or "none saved, scores are of the last weights"}
            summarise(module, datamodule, places, console)
        return float(saver.best_model_score) if best else float("nan")
    finally:
        failed = sys.exc_info()[0] is not None
        for logger in loggers:
            if hasattr(logger, "finish"):
                logger.finish(failed)


def summarise(module, datamodule, places: dict[str, str], console: Console) -> None:
    """Draw what the model finds in test images, and say how good it is and where everything lies."""
    batch = next(iter(datamodule.test_dataloader()))
    pictures = figures.save(module, batch, Path(places["run folder"]), "test images")
    cli.print_scores_by_step("Test scores, by EM step", module.test_scores_by_step, console)
    cli.print_places({**places, **pictures}, console)


def runs(trainer: pl.Trainer) -> dict[str, str]:
    """Where the loggers that know it say that the run is."""
    where = [logger.where() for logger in trainer.loggers if hasattr(logger, "where")]
    return {"W&B run": where[0]} if where else {}


if __name__ == "__main__":
    main()
