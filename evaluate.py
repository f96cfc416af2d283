"""Score a checkpoint, or a model that is not trained, by EM step: ``python evaluate.py --help``."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from nem_lightning.errors import require
from nem_lightning.runs import command_line, kinds, sweeps, threads
from nem_lightning.runs.command_line import Place
from nem_lightning.runs.folder import SCORES, RunFolder

threads.spin_less()  # before PyTorch is imported


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Compose, then evaluate."""
    with (
        sweeps.keep_going_without_failed_run(),
        RunFolder(config.paths.run_dir) as folder,
        command_line.one_line_errors(),
    ):
        evaluate(config, folder)


def evaluate(config: DictConfig, folder: RunFolder) -> None:
    """Load, instantiate, test."""
    from pytorch_lightning.utilities import rank_zero_only  # here, so that --help need not wait for it

    from nem_lightning import figures
    from nem_lightning.datamodules.base import STAGES, FramesDataModule
    from nem_lightning.training import checkpoints
    from nem_lightning.training.callbacks import require_results
    from nem_lightning.training.module import GroupingModule

    first = rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]
    model = config.get("model")
    require(
        (config.ckpt_path is None) != (model is None),
        "ckpt_path, model: one of them must be given: the checkpoint to score, or a model that is not trained, such as "
        "model=position_kmeans",
    )
    require(config.split in STAGES, f"split={config.split}: must be one of {', '.join(STAGES)}")
    command_line.set_seed(config.seed)
    sizes = {name: config[name] for name in ("num_components", "num_steps", "num_starts")}
    scores = command_line.parts(config.scores)
    datamodule = instantiate(config.data)
    if model is None:
        module = checkpoints.load_module(config.ckpt_path, scores, config.seed, sizes, config.trusted)
        if first:
            command_line.warn_of_other_data(checkpoints.read(config.ckpt_path)[checkpoints.KEY], config)
    else:
        config.pixels = {"shape": list(datamodule.image_shape), "binary": datamodule.binary}
        config.model = {**model, **{name: size for name, size in sizes.items() if size is not None}}
        module = GroupingModule(instantiate(config.model), scores, seed=config.seed)
        require(
            not module.has_weights,
            f"model: {type(module.model).__name__} must be trained by train.py; give ckpt_path instead",
        )
    module.model.check_images(datamodule.image_shape, datamodule.binary)
    own = isinstance(datamodule, FramesDataModule)
    require(own or config.split == "test", f"split={config.split}: must be test, as data is no FramesDataModule")
    datamodule.test_stage = config.split
    kinds.require_trainer(config.trainer)
    trainer = instantiate(config.trainer, logger=False)
    require_results(trainer)
    if first:
        datamodule.prepare_data()  # errors in the data are said before the folder is taken
        module.check_data(datamodule, "test")
        folder.claim(command_line.plain(config), again=False)
    trainer.test(module, datamodule, verbose=False)
    folder.begin()
    if not trainer.is_global_zero:
        return
    batch, generator = next(iter(datamodule.test_dataloader())), module.generator("test", 0)
    pictures = figures.save(module.model, batch, generator, folder.path, f"{config.split} images")
    scored = {"ckpt_path": str(config.ckpt_path)} if model is None else {"model": type(module.model).__name__}
    found = {**scored, **command_line.scores_of_test(module, config.split)}
    folder.finish(found)
    console = Console()
    images = f"{found['num_images']} {config.split} images of {type(datamodule).__name__.removesuffix('DataModule')}"
    up_to = "K up to " if module.model.choose_up_to is not None else "K="
    title = f"{up_to}{found['num_components']}, {images}, by EM step"
    command_line.print_saved_scores(title, found, console)
    places = [Place("scores", folder.path / SCORES), *command_line.places_of(pictures)]
    command_line.print_places(places, console)


if __name__ == "__main__":
    try:
        main()
    finally:
        sweeps.print_sweep_summary()
