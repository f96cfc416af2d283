"""Score a checkpoint by EM step: ``python evaluate.py --help``."""

import json
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from nem_lightning import checkpoint, cli, figures
from nem_lightning.datamodules.base import STAGES
from nem_lightning.errors import InputError


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Load, instantiate, test."""
    with cli.one_line_errors():
        cli.claim_run_folder(config)
        evaluate(config)


def evaluate(config: DictConfig) -> None:
    if config.split not in STAGES:
        raise InputError(f"split={config.split}: must be one of {', '.join(STAGES)}")
    pl.seed_everything(config.seed, verbose=False)
    module = checkpoint.load(config.ckpt_path, config.num_components, config.num_steps, config.trusted)
    module.seed = config.seed
    datamodule = instantiate(config.data)
    module.check_images(datamodule)
    datamodule.prepare_data()
    datamodule.setup()
    trainer = instantiate(config.trainer, logger=False)
    trainer.test(module, datamodule.eval_dataloader(config.split), verbose=False)

    run_dir = Path(config.paths.run_dir)
    scores = run_dir / "scores.json"
    result = {
        "ckpt_path": str(config.ckpt_path),
        "split": config.split,
        "num_images": len(datamodule.images[config.split]),
        "num_components": module.num_components,
        "seed": config.seed,
        "by_step": module.test_scores_by_step,
    }
    scores.write_text(json.dumps(result, indent=1) + "\n")
    batch = trainer.strategy.batch_to_device(next(iter(datamodule.eval_dataloader(config.split))))
    pictures = figures.save(module, batch, run_dir, f"{config.split} images")
    console = Console()
    title = f"K={module.num_components}, {config.split} images, by EM step"
    cli.print_scores_by_step(title, module.test_scores_by_step, console)
    cli.print_places({"scores": scores, **pictures}, console)


if __name__ == "__main__":
    main()
