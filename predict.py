"""Group the pixels of your own images with a trained model: ``python predict.py --help``."""

import hashlib
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from nem_lightning.errors import require
from nem_lightning.runs import command_line, threads
from nem_lightning.runs.command_line import Place

threads.spin_less()  # before PyTorch is imported

SETTINGS = "predict.yaml"
"""The file in the output folder that says what was asked for."""


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(config: DictConfig) -> None:
    """Compose, then group."""
    with command_line.one_line_errors():
        predict(config)


def predict(config: DictConfig) -> None:
    """Load the model, read the images, write what it finds."""
    from nem_lightning import predictions  # here, so that --help need not wait for it
    from nem_lightning.datamodules import FilesDataModule
    from nem_lightning.shipped import path_of
    from nem_lightning.training import checkpoints

    for name in ("ckpt_path", "images", "output"):
        require(not OmegaConf.is_missing(config, name), f"{name}: must be given; python predict.py --help says more")
    command_line.set_seed(config.seed)
    sizes = {name: config[name] for name in ("num_components", "num_steps", "num_starts")}
    module = predictions.on_gpu(checkpoints.load_module(config.ckpt_path, None, config.seed, sizes, config.trusted))
    data = FilesDataModule(
        config.images,
        images_key=config.images_key,
        layout=config.layout,
        size=module.model.image_shape[1:],
        channels=module.model.image_shape[0] if Path(config.images).expanduser().is_dir() else None,
        skip_unreadable=config.skip_unreadable,
        cache_dir=config.paths.data_dir,
        batch_size=config.batch_size,
    )
    module.model.check_images(data.image_shape, data.binary)
    data.prepare_data()
    output = Path(config.output).expanduser()
    within = output.resolve().is_relative_to(data.path.resolve())
    require(not within, f"output={output}: is in the folder of images; choose another folder")
    asked = OmegaConf.masked_copy(config, [str(name) for name in config if name not in ("output", "paths")])
    weights = hashlib.sha256(path_of(config.ckpt_path).read_bytes()).hexdigest()
    claim(output, f"{OmegaConf.to_yaml(asked, resolve=True)}# SHA-256 of the checkpoint: {weights}\n")
    console = Console()
    with Progress(console=console) as bar:
        task = bar.add_task("grouping", total=None)
        for done, count in predictions.write(data, module, output):
            bar.update(task, completed=done, total=count)
    names = ("labels", "overlays", "arrays", "contact_sheet.png")
    places = [Place(name, output / name) for name in names]
    if module.model.choose_up_to is not None:
        counts = sorted(predictions.numbers_of_components(output, data.names()).items())
        places.insert(0, Place("components", ", ".join(f"{k} in {count} images" for k, count in counts)))
    command_line.print_places(places, console)


def claim(output: Path, settings: str) -> None:
    """Take the output folder: it must be empty, or be of the same settings.

    Raises:
        InputError: the folder holds something else.
    """
    said = output / SETTINGS
    if not said.exists():
        empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
        require(empty, f"output={output}: is not empty, and not of predict.py; choose another folder")
        output.mkdir(parents=True, exist_ok=True)
        said.write_text(settings)
    require(said.read_text() == settings, f"output={output}: was written with other settings; choose another folder")


if __name__ == "__main__":
    main()
