"""Compare RNN-EM on Pascal VOC with groupings that need no learning, and test whether it groups by colour.

    python -m reproduce.voc --checkpoint outputs/<run>/checkpoints/best.ckpt      # several: one for each seed

Checkpoints may be of pixels (data=voc), of colours and places (data=voc_places) and of features (data=voc_features);
k-means on the same channels is compared too. Everything is scored at the checkpoints' resolution and with their K, on
the same images. Writes voc.csv, voc.json, voc.md and voc.png into results/. The names of other results say what
differs: voc_K4.*, voc_128x128.*, voc_val.* for ``--split val``, voc_baselines.* without a checkpoint. Needs the extra
``reproduce`` (pip install -c constraints.txt -e '.[reproduce]').
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nem_lightning.datamodules import VOCDataModule, VOCFeaturesDataModule, VOCPlacesDataModule
from nem_lightning.datamodules.voc_features import STRIDE
from nem_lightning.errors import InputError, require
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.m_steps import GradientMStep, evaluating
from nem_lightning.runs.command_line import Place, print_places
from nem_lightning.scores.base import VOID
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule
from reproduce import voc_output
from reproduce.voc_baselines import BASELINES, SEEDED, Segmentation, colour_k_means
from reproduce.voc_scores import against_truth, agreement, by_colour, explained_colour, summaries, summary

Data = VOCDataModule | VOCFeaturesDataModule
KINDS = ("class", "instance")
REFERENCES = ("colour k-means", "position + colour k-means", "compact blocks", "vertical strips")
SEEDS = (0, 1, 2)  # for the baselines that draw random numbers
SIZE, COMPONENTS = 64, 3  # of the baselines without a checkpoint; names of files say when others are used
PIXELS: dict[int, type[VOCDataModule]] = {kind.channels: kind for kind in (VOCDataModule, VOCPlacesDataModule)}
"""Data with a value for each pixel, by the number of channels. A model of another number takes feature maps."""


def main() -> None:
    """Read the command line, and compare."""
    data_dir = Path(os.environ.get("NEM_DATA_DIR", "data"))
    parser = argparse.ArgumentParser(prog="python -m reproduce.voc", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--devkit", type=Path, default=data_dir / "VOCdevkit", help="the folder that holds VOC2012")
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", default=[], help="of models trained on VOC in any form, each seed"
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    arguments = parser.parse_args()
    try:
        run(arguments.devkit, data_dir / "cache", arguments.checkpoint, arguments.split, arguments.out, Console())
    except InputError as error:
        sys.exit(f"reproduce.voc: {str(error).replace('ckpt_path=', '--checkpoint ')}")


def run(devkit: Path, cache_dir: Path, paths: list[Path], split: str, out: Path, console: Console) -> None:
    """Score, print and write the results.

    Raises:
        InputError: a devkit or a checkpoint that cannot be used, checkpoints that differ in K or resolution, or a
            folder that cannot be made; raised before anything is scored.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
    modules = {path: checkpoints.load_module(path) for path in paths}
    size, k = size_and_components(modules)
    images = VOCDataModule(str(devkit), str(cache_dir), size=size)
    counts = {module.model.image_shape[0] for module in modules.values()} - {images.channels}
    others = {count: data_of(count, devkit, cache_dir, size) for count in counts}
    methods: dict[str, list[tuple[GroupingModule, Data]]] = {}
    for module in modules.values():
        own = others.get(module.model.image_shape[0], images)
        module.model.check_images(own.image_shape, own.binary)
        methods.setdefault(title(module), []).append((module, own))
    for data in (images, *others.values()):
        data.prepare_data()
    compared = [(f"k-means, {named(count)}", colour_k_means, own) for count, own in others.items()]
    compared += [(name, label, images) for name, label in BASELINES.items()]
    for name, label, own in compared:
        seeds = SEEDS if name in SEEDED or own is not images else SEEDS[:1]
        of_seeds = [GroupingModule(Segmentation(label, own.image_shape, k, seed), seed=seed) for seed in seeds]
        methods[name] = [(module, own) for module in of_seeds]
    groupings = {
        name: [labels_of(module, own, split, size, f"{name}, run {i}", console) for i, (module, own) in enumerate(of)]
        for name, of in methods.items()
    }
    frames, masks = images.load(split), {kind: images.masks(split, kind) for kind in KINDS}
    pixels = frames.frames[:, 0].float() / frames.scale
    result = {
        "settings": {
            "split": split,
            "images": len(pixels),
            "with_instance_masks": int((masks["instance"] != VOID).flatten(1).any(1).sum()),
            "size": size,
            "num_components": k,
            "baseline_seeds": list(SEEDS),
            "checkpoints": [describe(path, module) for path, module in modules.items()],
        },
        **measured(groupings, pixels, masks),
    }
    parts = {"baselines": not modules, f"K{k}": k != COMPONENTS, f"{size}x{size}": size != SIZE, split: split != "test"}
    stem = "_".join(["voc", *(part for part, differs in parts.items() if differs)])
    voc_output.show(result, console)
    places = voc_output.write(result, voc_output.picture(groupings, pixels, masks["class"]), out, stem)
    print_places([Place(*place) for place in places.items()], console)


def size_and_components(modules: Mapping[Path, GroupingModule]) -> tuple[int, int]:
    """Give the size of the images that checkpoints were trained on, and their K.

    Raises:
        InputError: images that are not squares, or checkpoints that differ.
    """
    found: list[tuple[int, int]] = []
    for path, module in modules.items():
        channels, height, width = module.model.image_shape
        require(height == width, f"--checkpoint {path}: takes images of {module.model.image_shape}; VOC's are squares")
        found.append((height if channels in PIXELS else height * STRIDE, module.model.num_components))
        for name, one, first in zip(("image size", "num_components"), found[-1], found[0], strict=True):
            require(one == first, f"--checkpoint {path}: {name} is {one}, the first one's {first}; must be equal")
    return found[0] if found else (SIZE, COMPONENTS)


def title(module: GroupingModule) -> str:
    """Give the name of a trained model in the tables."""
    model, channels = module.model, module.model.image_shape[0]
    name = type(model).__name__
    if isinstance(model, NeuralEM):
        name = "N-EM" if isinstance(model.m_step, GradientMStep) else "RNN-EM"
    return name if channels == VOCDataModule.channels else f"{name}, {named(channels)}"


def data_of(channels: int, devkit: Path, cache_dir: Path, size: int) -> Data:
    """Give the data of a number of channels, for images of a size."""
    if channels in PIXELS:
        return PIXELS[channels](str(devkit), str(cache_dir), size=size)
    return VOCFeaturesDataModule(str(devkit), str(cache_dir), size=size, num_features=channels)


def named(channels: int) -> str:
    """Say what the channels are, other than those of an image."""
    return "colours and places" if channels in PIXELS else f"{channels} features"


def describe(path: Path, module: GroupingModule) -> dict[str, Any]:
    """Say which checkpoint this is, and how long it was trained."""
    saved = checkpoints.read(path)
    return {
        "method": title(module),
        "file": "/".join(path.parts[-3:]),  # the run's folder, checkpoints, the file
        "epochs": saved["epoch"] + 1 if "epoch" in saved else "?",  # weights alone do not say
        "updates": saved.get("global_step", "?"),
        "num_steps": module.model.num_steps,
        "seed": module.seed,
    }


@torch.no_grad()
def labels_of(module: GroupingModule, data: Data, split: str, size: int, title: str, console: Console) -> Tensor:
    """Group all images, as ``evaluate.py`` does with the run's seed: labels after the last step, (N, size, size).

    The responsibilities of feature maps are enlarged to the images' size first, linearly.
    """
    batches, found = track(list(data.eval_dataloader(split)), title, console=console), []
    with evaluating(module.model):
        for index, batch in enumerate(batches):
            grouping = module.model(batch["frames"], generator=module.generator("test", index))[-1]
            gamma = F.interpolate(grouping.responsibilities[:, :, 0], (size, size), mode="bilinear")
            found.append(gamma.argmax(1))
    return torch.cat(found)


def measured(groupings: dict[str, list[Tensor]], pixels: Tensor, masks: dict[str, Tensor]) -> dict[str, Any]:
    """Measure each method's runs: scores, and agreement with other methods and the truth.

    The other methods are the first runs of ``REFERENCES``. The colour score is also given for the true classes.
    """
    references = {name: groupings[name][0] for name in REFERENCES}
    references |= {f"true {kind} masks": masks[kind] for kind in KINDS}
    scores, agreements = {}, {}
    for name, runs in groupings.items():
        others = {of: groups for of, groups in references.items() if of != name}
        scores[name] = summaries(runs, lambda labels: against_truth(labels, masks) | by_colour(labels, pixels))
        agreements[name] = summaries(runs, lambda labels, others=others: agreement(labels, others))
    classes = masks["class"]
    explained = explained_colour(classes.clamp_min(0), pixels, classes != VOID)
    scores[voc_output.TRUTH] = {"colour_r2": summary(explained[None])}
    return {"scores": scores, "agreement": agreements}


if __name__ == "__main__":
    main()
