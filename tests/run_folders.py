"""Folders of runs, as train.py writes them."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

HEADINGS = {
    "ami_max": ["AMI (max)", ".3f"],
    "ari": ["ARI", ".3f"],
    "reconstruction_error": ["squared error", ".4f"],
    "loss_intra": ["", ".5g"],
}


def write_run(folder: Path, seed: int = 0, ami: float | None = 0.8, **settings) -> Path:
    """Write the folder of a run, which is finished unless ``ami`` is None. Other settings: ``model__num_steps=5``."""
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "ckpt_path": None,
        "pixels": {"shape": [1, 28, 28], "binary": True},
        "data": {"_target_": "nem_lightning.datamodules.ShapesDataModule", "data_dir": str(folder), "seed": seed},
        "model": {
            "_target_": "nem_lightning.models.em.NeuralEM",
            "num_steps": 2,
            "m_step": {"_target_": "nem_lightning.models.m_steps.RecurrentMStep"},
        },
        "scores": {"ami_max": {"_target_": "nem_lightning.scores.AdjustedMutualInformation"}},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
        "module": {"_target_": "nem_lightning.training.module.GroupingModule", "decay": True, "seed": seed},
        "callbacks": {"last_checkpoint": {"dirpath": f"{folder}/checkpoints", "filename": "last"}},
        "logger": {"csv": {"save_dir": str(folder)}},
        "paths": {"run_dir": str(folder)},
    }
    for name, value in settings.items():
        *path, last = name.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if ami is not None:
        by_step = [
            {"ami_max": share * ami, "ari": ami, "reconstruction_error": 0.02, "loss_intra": 300.0}
            for share in np.linspace(1, 0.5, config["model"]["num_steps"])[::-1]
        ]
        scores = {"split": "test", "seed": seed, "best_score": 0.01, "epochs": 12, "headings": HEADINGS}
        scores["by_step"] = by_step
        (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def write_metrics(folder: Path, version: int, *lines: str) -> None:
    path = folder / "csv" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("epoch,step,train/loss,val/ami_max,test/loss\n" + "".join(f"{line}\n" for line in lines))


def write_sweep(folder: Path) -> Path:
    """Write a sweep of two values of num_steps and three seeds; the last run failed."""
    runs = []
    for num_steps, amis in ((2, (0.70, 0.72, 0.77)), (10, (0.80, 0.84, None))):
        for seed, ami in enumerate(amis):
            run = write_run(folder / f"{num_steps}_{seed}", seed, ami, model__num_steps=num_steps)
            write_metrics(run, 0, "0,4,900,,", f"0,5,,0.{num_steps},", "1,9,500,,", f"1,9,,0.{num_steps}5,")
            Image.new("RGB", (30, 10), "red").save(run / "gallery.png")
            runs.append(run)
    (runs[-1] / "error.txt").write_text("Traceback\n  ...\nNonFiniteLoss: the loss is not finite\n\n")
    return folder
