"""Score a checkpoint by EM step: ``python evaluate.py --help``."""

import json
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from nem_lightning import checkpoint, cli, figures
from nem_lightning.datamodules.base import STAGES
from nem_lightning.errors import require


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Compose, then evaluate."""
    with cli.one_line_errors():
        evaluate(config)


def evaluate(config: DictConfig) -> None:
    """Load, instantiate, test."""
    require(config.ckpt_path is not None, "ckpt_path: must be given, the checkpoint to score")
    require(config.split in STAGES, f"split={config.split}: must be one of {', '.join(STAGES)}")
    cli.set_seed(config.seed)
    module = checkpoint.load(config.ckpt_path, config.num_components, config.num_steps, config.trusted)
    module.seed = config.seed
    datamodule = instantiate(config.data)
    module.check_images(datamodule)
    cli.claim_run_folder(config)
    datamodule.prepare_data()
    trainer = instantiate(config.trainer, logger=False)
    trainer.test(module, datamodule.eval_dataloader(config.split), verbose=False)

    run_dir = Path(config.paths.run_dir)
    scores = run_dir / "scores.json"
    result = {
        "ckpt_path": str(config.ckpt_path),
        "split": config.split,
        "num_images": module.test_images,
        "num_components": module.num_components,
        "seed": config.seed,
        "by_step": module.test_scores_by_step,
    }
    scores.write_text(json.dumps(result, indent=1) + "\n")
    batch = next(iter(datamodule.eval_dataloader(config.split)))
    pictures = figures.save(module, batch, run_dir, f"{config.split} images")
    console = Console()
    title = f"K={module.num_components}, {config.split} images, by EM step"
    cli.print_scores_by_step(title, module.test_scores_by_step, console)
    cli.print_places({"scores": scores, **pictures}, console)


if __name__ == "__main__":
    main()
