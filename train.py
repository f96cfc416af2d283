"""Train N-EM or RNN-EM: ``python train.py --help``."""

import sys
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from nem_lightning import checkpoint, cli, figures
from nem_lightning.loggers import WandbLogger


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Compose, instantiate, fit, test. Returns the best validation score of what stops the training."""
    with cli.one_line_errors():
        cli.claim_run_folder(config, config.ckpt_path)
        try:
            return train(config)
        finally:
            finish_wandb()


def train(config: DictConfig) -> float:
    pl.seed_everything(config.seed, verbose=False)
    if config.ckpt_path is not None:
        checkpoint.read(config.ckpt_path)  # raises now, not after the data is loaded
    datamodule = instantiate(config.data)
    module = instantiate(config.model)
    module.check_images(datamodule)
    plain_config = OmegaConf.to_container(config, resolve=True)
    callbacks = [*instantiate(config.callbacks).values(), checkpoint.SaveConfig(plain_config)]
    loggers = list(instantiate(config.logger).values())
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    for logger in loggers:
        logger.log_hyperparams(plain_config)
    run_dir, console = Path(config.paths.run_dir), Console()
    cli.print_places({"run folder": run_dir, **wandb_places(trainer)}, console)

    trainer.fit(module, datamodule, ckpt_path=config.ckpt_path, weights_only=True)
    trainer.test(module, datamodule, ckpt_path="best", weights_only=True, verbose=False)
    if trainer.is_global_zero:
        summarise(module, datamodule, trainer, run_dir, console)
    return float(trainer.checkpoint_callback.best_model_score)


def summarise(module, datamodule, trainer: pl.Trainer, run_dir: Path, console: Console) -> None:
    """Draw what the best checkpoint finds, and say how good it is and where everything lies."""
    batch = next(iter(datamodule.test_dataloader()))
    batch = trainer.strategy.batch_to_device(batch)
    pictures = figures.save(module, batch, run_dir, "test images")
    cli.print_scores_by_step("Test scores of the best checkpoint, by EM step", module.test_scores_by_step, console)
    places = {"run folder": run_dir, "best checkpoint": trainer.checkpoint_callback.best_model_path, **pictures}
    cli.print_places({**places, **wandb_places(trainer)}, console)


def wandb_places(trainer: pl.Trainer) -> dict[str, str]:
    runs = [logger.where() for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return {"W&B run": runs[0]} if runs else {}


def finish_wandb() -> None:
    """End this run's W&B run, whatever happened, so that the next run of a sweep starts its own."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


if __name__ == "__main__":
    main()
