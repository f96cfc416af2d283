"""Compare RNN-EM on Pascal VOC with groupings that need no learning, and test whether it groups by colour.

    python -m reproduce.voc --checkpoint outputs/<run>/checkpoints/best.ckpt      # several: one for each seed

Everything is scored at the checkpoint's resolution and with its K, on the same images. Writes voc.csv, voc.json,
voc.md and voc.png into results/; voc_val.* for ``--split val``, voc_baselines.* without a checkpoint. Needs the
extra ``reproduce`` (pip install -c constraints.txt -e '.[reproduce]').
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nem_lightning.datamodules import VOCDataModule
from nem_lightning.errors import InputError, require
from nem_lightning.models.m_steps import evaluating
from nem_lightning.runs.command_line import Place, print_places
from nem_lightning.scores.base import VOID
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule
from reproduce import voc_output
from reproduce.voc_baselines import BASELINES, SEEDED, Segmentation
from reproduce.voc_scores import against_truth, agreement, by_colour, explained_colour, summaries, summary

OURS = "RNN-EM"
KINDS = ("class", "instance")
REFERENCES = ("colour k-means", "position + colour k-means", "compact blocks", "vertical strips")
SEEDS = (0, 1, 2)  # for the baselines that draw random numbers
SIZE, COMPONENTS = 64, 3  # used when no checkpoint is given


def main() -> None:
    """Read the command line, and compare."""
    data_dir = Path(os.environ.get("NEM_DATA_DIR", "data"))
    parser = argparse.ArgumentParser(prog="python -m reproduce.voc", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--devkit", type=Path, default=data_dir / "VOCdevkit", help="the folder that holds VOC2012")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], help="of RNN-EM on VOC, one for each seed")
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
        InputError: a devkit or a checkpoint that cannot be used, checkpoints that differ in K, T or resolution, or a
            folder that cannot be made; raised before anything is scored.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
    modules = [checkpoints.load_module(path) for path in paths]
    shape = modules[0].model.image_shape if modules else (3, SIZE, SIZE)
    k = modules[0].model.num_components if modules else COMPONENTS
    require(
        shape[1] == shape[2],
        f"--checkpoint {paths[0] if paths else None}: takes images of {shape}; VOC's here are squares",
    )
    data = VOCDataModule(str(devkit), str(cache_dir), size=shape[1])
    for path, module in zip(paths, modules, strict=True):
        module.model.check_images(data.image_shape, data.binary)
        for name in ("num_components", "num_steps"):
            first, other = getattr(modules[0].model, name), getattr(module.model, name)
            require(first == other, f"--checkpoint {path}: {name} is {other}, the first one's {first}; must be equal")
    data.prepare_data()
    methods = {OURS: modules} if modules else {}
    for name, label in BASELINES.items():
        seeds = SEEDS if name in SEEDED else SEEDS[:1]
        methods[name] = [GroupingModule(Segmentation(label, shape, k, seed), seed=seed) for seed in seeds]
    groupings = {
        name: [labels_of(module, data, split, f"{name}, run {i}", console) for i, module in enumerate(of)]
        for name, of in methods.items()
    }
    frames, masks = data.load(split), {kind: data.masks(split, kind) for kind in KINDS}
    pixels = frames.frames[:, 0].float() / frames.scale
    result = {
        "settings": {
            "split": split,
            "images": len(pixels),
            "with_instance_masks": int((masks["instance"] != VOID).flatten(1).any(1).sum()),
            "size": shape[1],
            "num_components": k,
            "num_steps": modules[0].model.num_steps if modules else None,
            "baseline_seeds": list(SEEDS),
            "checkpoints": [describe(path, module) for path, module in zip(paths, modules, strict=True)],
        },
        **measured(groupings, pixels, masks),
    }
    stem = "_".join(["voc", *([] if modules else ["baselines"]), *(["val"] if split == "val" else [])])
    voc_output.show(result, console)
    places = voc_output.write(result, voc_output.picture(groupings, pixels, masks["class"]), out, stem)
    print_places([Place(*place) for place in places.items()], console)


def describe(path: Path, module: GroupingModule) -> dict[str, Any]:
    """Say which checkpoint this is, and how long it was trained."""
    saved = checkpoints.read(path)
    name = "/".join(path.parts[-3:])  # the run's folder, checkpoints, the file
    return {"file": name, "epochs": saved["epoch"] + 1, "updates": saved["global_step"], "seed": module.seed}


@torch.no_grad()
def labels_of(module: GroupingModule, data: VOCDataModule, split: str, title: str, console: Console) -> Tensor:
    """Group all images, as ``evaluate.py`` does with the run's seed: labels after the last step, (N, H, W)."""
    batches = track(list(data.eval_dataloader(split)), title, console=console)
    with evaluating(module.model):
        found = [
            module.model(batch["frames"], generator=module.generator("test", index))[-1].labels
            for index, batch in enumerate(batches)
        ]
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
