"""Score a checkpoint by EM step: ``python evaluate.py --help``."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from nem_lightning.errors import require
from nem_lightning.runs import command_line
from nem_lightning.runs.command_line import Place
from nem_lightning.runs.folder import SCORES, RunFolder


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Compose, then evaluate."""
    with RunFolder(config.paths.run_dir) as folder, command_line.one_line_errors():
        evaluate(config, folder)


def evaluate(config: DictConfig, folder: RunFolder) -> None:
    """Load, instantiate, test."""
    from nem_lightning import figures
    from nem_lightning.datamodules.base import STAGES
    from nem_lightning.training import checkpoints  # here, so that --help need not wait for them

    require(config.ckpt_path is not None, "ckpt_path: must be given, the checkpoint to score")
    require(config.split in STAGES, f"split={config.split}: must be one of {', '.join(STAGES)}")
    command_line.set_seed(config.seed)
    sizes = {name: config[name] for name in ("num_components", "num_steps", "num_starts")}
    module = checkpoints.load(config.ckpt_path, **sizes, trusted=config.trusted)
    module.seed = config.seed
    datamodule = instantiate(config.data)
    module.check_images(datamodule)
    datamodule.prepare_data()
    images = datamodule.eval_dataloader(config.split)  # what is wrong with the data is said before the folder is taken
    folder.claim(OmegaConf.to_container(config, resolve=True), again=False)
    trainer = instantiate(config.trainer, logger=False)
    trainer.test(module, images, verbose=False)

    scores = command_line.scores_of_test(module, config.split)
    folder.finish({"ckpt_path": str(config.ckpt_path), **scores})
    pictures = figures.save(module, next(iter(images)), folder.path, f"{config.split} images")
    console = Console()
    best_of = command_line.best_of(scores["num_starts"])
    title = f"K={scores['num_components']}, {config.split} images, by EM step{best_of}"
    command_line.print_scores_by_step(title, scores["headings"], scores["by_step"], console)
    places = [Place("scores", folder.path / SCORES), *(Place(*picture) for picture in pictures.items())]
    command_line.print_places(places, console)


if __name__ == "__main__":
    main()
