"""Times of everything around the training steps: start-up, Lightning, scores."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from sklearn.metrics import adjusted_mutual_info_score

from benchmarks import timing
from benchmarks.steps import Case, our_module
from nem_lightning.datamodules.base import FramesDataModule, TensorFrames
from nem_lightning.datamodules.shapes import ShapesDataModule, generate
from nem_lightning.scores.mutual_information import adjusted_mutual_information
from nem_lightning.training.callbacks import StopOnNonFiniteLoss

ROOT = Path(__file__).parent.parent
STARTED = "NEM_BENCHMARK_STARTED"
SCORE = 0.83


class LeaveAfterFirstStep(pl.Callback):
    """Ends the program after its first training step, and prints the seconds since its start."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        print(f"first step after {time.time() - float(os.environ[STARTED])}", flush=True)
        os._exit(0)


class LeaveAtScore(pl.Callback):
    """Ends the program when validation AMI reaches ``SCORE``, and prints the seconds since its start."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.callback_metrics["val/ami_max"] >= SCORE:
            print(f"score after {time.time() - float(os.environ[STARTED])}", flush=True)
            os._exit(0)


def start_up(device: torch.device, rounds: int, score: bool) -> dict[str, float]:
    """Give the seconds that ``python train.py`` needs to print its help and to finish its first training step.

    If ``score``, also give the seconds to a validation AMI of ``SCORE`` with the default settings, checked each quarter
    of an epoch (NaN if the run never reaches this score). The data exists beforehand.
    """
    leave = f"+callbacks.leave._target_={__name__}"
    commands = {
        "help": ["--help"],
        "first step": [f"{leave}.LeaveAfterFirstStep"],
        "score": ["+trainer.val_check_interval=0.25", f"{leave}.LeaveAtScore"],
    }
    times = {name: [] for name in commands if score or name != "score"}
    with tempfile.TemporaryDirectory() as folder:
        ShapesDataModule(folder).prepare_data()
        place = [f"trainer={'gpu' if device.type == 'cuda' else 'cpu'}", f"paths.data_dir={folder}", "logger=csv"]
        for index in range(rounds):
            for name in times:
                start = time.time()
                run = [] if name == "help" else [*place, f"hydra.run.dir={folder}/{name} {index}"]
                printed = _train(folder, *commands[name], *run)
                _, reached, said = printed.rpartition(f"{name} after ")
                seconds = float(said.split()[0]) if reached else float("nan")
                times[name].append(time.time() - start if name == "help" else seconds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _train(folder: str, *arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "WANDB_MODE": "offline", STARTED: str(time.time())}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


class Shapes(FramesDataModule[TensorFrames]):
    """``count`` images of Shapes, in memory only."""

    binary = True

    def __init__(self, count: int, case: Case) -> None:
        super().__init__(case.batch, seed=0)
        self.image_shape = (1, case.size, case.size)
        self.count = count

    def load(self, stage: str) -> TensorFrames:
        images, groups = generate(self.count, self.image_shape[1], 3, np.random.default_rng(0))
        return TensorFrames(torch.from_numpy(images)[:, None, None], torch.from_numpy(groups)[:, None])


class StepTimes(pl.Callback):
    """Time from the end of a training step to the end of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def lightning(case: Case, device: torch.device, rounds: int, steps: int) -> dict[str, float]:
    """Give the milliseconds of a step in ``Trainer.fit`` and in a bare loop over the same batches, and their ratio.

    ``Trainer.fit`` logs and makes the default checks. The two take turns, with ``steps`` steps in each turn. The ratio
    is the median over rounds.
    """
    fit, bare = [], []
    data = Shapes(case.batch * steps, case)
    data.setup("fit")
    module = our_module(case)
    for _ in range(rounds):
        times = StepTimes()
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            limit_val_batches=0,
            logger=CSVLogger(tempfile.mkdtemp()),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[StopOnNonFiniteLoss(), times],
        )
        trainer.fit(module, data)
        fit.append(statistics.median(times.seconds))
        bare.append(statistics.median(_bare_loop(module.to(device), data, device)))
    ratio = statistics.median(one / other for one, other in zip(fit, bare, strict=True))
    return {"fit": 1e3 * statistics.median(fit), "bare": 1e3 * statistics.median(bare), "ratio": ratio}


def _bare_loop(module, data: Shapes, device: torch.device) -> list[float]:
    optimizer = module.optimizer(module.parameters())
    noise = torch.Generator(device).manual_seed(0)
    data.trainer = None
    times, last = [], None
    for batch in data.train_dataloader():
        loss = module.model.training_loss(batch["frames"].to(device), generator=noise).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        now = time.perf_counter()
        if last is not None:
            times.append(now - last)
        last = now
    return times


def scores(device: torch.device, images: int, rounds: int) -> dict[str, float]:
    """Give the images per second of adjusted mutual information: ours in batches of 64, and scikit-learn's.

    Raises:
        RuntimeError: the two differ by more than 1e-9.
    """
    _, groups = (torch.from_numpy(x).long() for x in generate(images, 28, 3, np.random.default_rng(0)))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 3, groups.shape, generator=generator)
    labels = torch.where(torch.rand(groups.shape, generator=generator) < 0.2, noise, groups.clamp_min(1) - 1)

    def ours() -> torch.Tensor:
        batches = zip(labels.to(device).split(64), groups.to(device).split(64), strict=True)
        return torch.cat([adjusted_mutual_information(*batch) for batch in batches])

    def theirs() -> list[float]:
        return [
            adjusted_mutual_info_score(g[g != 0], p[g != 0], average_method="max")
            for g, p in zip(groups.flatten(1).numpy(), labels.flatten(1).numpy(), strict=True)
        ]

    difference = (ours().cpu() - torch.tensor(theirs(), dtype=torch.float64)).abs().max().item()
    if difference > 1e-9:
        raise RuntimeError(f"adjusted mutual information differs from scikit-learn's by {difference}")
    result = timing.summary(
        timing.in_turns({"ours": ours, "scikit-learn": theirs}, rounds, device), images, "scikit-learn"
    )
    return {name: value["per_second"] for name, value in result.items()} | {
        "ratio": result["ours"]["of_scikit-learn"],
        "difference": difference,
    }


def evaluation(case: Case, device: torch.device, images: int) -> float:
    """Give the seconds of ``Trainer.test`` on ``images`` images: the loop, and all scores after each step."""
    data, module = Shapes(images, case), our_module(case)
    data.setup("test")
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.test(module, data, verbose=False)
    return time.perf_counter() - start
