"""What RNN-EM finds in Pascal VOC, beside groupings that need no learning, and whether it groups by colour.

    python -m reproduce.voc --checkpoint outputs/<run>/checkpoints/best.ckpt      # several: one for each seed

Everything is scored at the checkpoint's resolution and with its K, on the same images. Writes voc.csv, voc.json,
voc.md and voc.png into results/; voc_val.* for ``--split val``, voc_baselines.* without a checkpoint. Needs the
extra ``reproduce`` (pip install -c constraints.txt -e '.[reproduce]').
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nem_lightning.datamodules import VOCDataModule
from nem_lightning.errors import InputError, require
from nem_lightning.runs.command_line import print_places
from nem_lightning.scores.best_overlap import VOID
from nem_lightning.training import checkpoints
from nem_lightning.training.module import NeuralEMModule
from reproduce import voc_output
from reproduce.voc_baselines import BASELINES, SEEDED
from reproduce.voc_scores import KINDS, Images, Summary, against_truth, agreement, by_colour, explained_colour, summary

OURS = "RNN-EM"
REFERENCES = ("colour k-means", "position + colour k-means", "compact blocks", "vertical strips")
SEEDS = (0, 1, 2)  # of the baselines that draw at random
SIZE, COMPONENTS = 64, 3  # without a checkpoint

Summaries = dict[str, dict[str, Summary | None]]


def main() -> None:
    data_dir = Path(os.environ.get("NEM_DATA_DIR", "data"))
    parser = argparse.ArgumentParser(prog="python -m reproduce.voc", description=__doc__.split("\n")[0])
    parser.add_argument("--devkit", type=Path, default=data_dir / "VOCdevkit", help="the folder that holds VOC2012")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], help="of RNN-EM on VOC, one for each seed")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    arguments = parser.parse_args()
    try:
        run(arguments.devkit, data_dir / "cache", arguments.checkpoint, arguments.split, arguments.out, Console())
    except InputError as error:
        sys.exit(f"reproduce.voc: {str(error).replace('ckpt_path=', '--checkpoint ')}")


def run(devkit: Path, cache_dir: Path, checkpoints: list[Path], split: str, out: Path, console: Console) -> None:
    """Score, print, write.

    Raises:
        InputError: before anything is scored: a devkit or a checkpoint that cannot be used, checkpoints that differ
            in K, T or resolution, or a folder that cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
    modules = [checkpoints.load(path) for path in checkpoints]
    shape = tuple(modules[0].em.m_step.image_shape) if modules else (3, SIZE, SIZE)
    k = modules[0].num_components if modules else COMPONENTS
    require(shape[1] == shape[2], f"--checkpoint {checkpoints[:1]}: takes images of {shape}; VOC's here are squares")
    datamodule = VOCDataModule(str(devkit), str(cache_dir), size=shape[1])
    for path, module in zip(checkpoints, modules, strict=True):
        module.check_images(datamodule)
        for name in ("num_components", "num_steps"):
            first, other = getattr(modules[0], name), getattr(module, name)
            require(first == other, f"--checkpoint {path}: {name} is {other}, the first one's {first}; must be equal")
    datamodule.prepare_data()
    images = Images(
        torch.cat([batch["image"] for batch in datamodule.eval_dataloader(split)]),
        {kind: datamodule.masks(split, kind).long() for kind in KINDS},
    )

    groupings = {OURS: torch.stack([found(module, datamodule, split) for module in modules])} if modules else {}
    groupings |= baselines(images.pixels, k, console)
    result = {
        "settings": {
            "split": split,
            "images": len(images.pixels),
            "with_instance_masks": int((images.masks["instance"] != VOID).any(2).any(1).sum()),
            "size": shape[1],
            "num_components": k,
            "num_steps": modules[0].num_steps if modules else None,
            "baseline_seeds": list(SEEDS),
            "checkpoints": [describe(path, module) for path, module in zip(checkpoints, modules, strict=True)],
        },
        "scores": scored(groupings, images),
        "agreement": compared(groupings, images),
    }
    stem = "_".join(["voc", *([] if modules else ["baselines"]), *(["val"] if split == "val" else [])])
    voc_output.show(result, console)
    print_places(voc_output.write(result, groupings, images, out, stem), console)


def describe(path: Path, module: NeuralEMModule) -> dict[str, object]:
    saved = checkpoints.read(path)
    name = "/".join(path.parts[-3:])  # the run's folder, checkpoints, the file
    return {"file": name, "epochs": saved["epoch"] + 1, "updates": saved["global_step"], "seed": module.seed}


@torch.no_grad()
def found(module: NeuralEMModule, datamodule: VOCDataModule, split: str) -> Tensor:
    """RNN-EM's grouping after its last step, as ``evaluate.py`` draws it: (N, H, W)."""
    module.eval()
    batches = enumerate(datamodule.eval_dataloader(split))
    return torch.cat([module(batch["image"], generator=module.generator("test", i))[-1].labels for i, batch in batches])


def baselines(pixels: Tensor, k: int, console: Console) -> dict[str, Tensor]:
    """Each baseline's labels, (R, N, H, W); those without a random draw have one run."""
    arrays = pixels.permute(0, 2, 3, 1).double().numpy()
    return {
        name: torch.from_numpy(
            np.stack(
                [
                    [baseline(image, k, seed) for image in track(arrays, f"{name}, seed {seed}", console=console)]
                    for seed in (SEEDS if name in SEEDED else SEEDS[:1])
                ]
            )
        )
        for name, baseline in BASELINES.items()
    }


def scored(groupings: dict[str, Tensor], images: Images) -> Summaries:
    """By method, against the truth and by colour. The true classes have a share of colour variance, too."""
    scores = {
        name: {score: summary(of) for score, of in (against_truth(labels, images) | by_colour(labels, images)).items()}
        for name, labels in groupings.items()
    }
    classes = images.masks["class"]
    r2 = explained_colour(torch.where(classes == VOID, 0, classes), images.pixels, classes != VOID)
    return scores | {voc_output.TRUTH: {"colour_r2": summary(r2[None])}}


def compared(groupings: dict[str, Tensor], images: Images) -> Summaries:
    """By method, how far its groupings agree, over all pixels, with those of the references (their first seed)
    and with the true masks."""
    references = {name: groupings[name][0] for name in REFERENCES}
    references |= {f"true {kind} masks": images.masks[kind] for kind in KINDS}
    return {
        name: {
            f"{index} with {reference}": summary(of)
            for reference, groups in references.items()
            if reference != name
            for index, of in agreement(labels, groups).items()
        }
        for name, labels in groupings.items()
    }


if __name__ == "__main__":
    main()
