"""Two processes give what one with twice the batch gives."""

import dataclasses
import functools
import json
import os
import socket
from pathlib import Path

import pytest
import torch
from python_server import forking
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from tiny import SHAPE, TinyImages, default_scores, scores_of, tiny_trainer

from nem_lightning.datamodules.base import TensorFrames
from nem_lightning.models.em import Iterate, NeuralEM
from nem_lightning.models.likelihoods import Bernoulli
from nem_lightning.models.losses import NeuralEMLoss
from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.training.checkpoints import WholeFiles
from nem_lightning.training.module import GroupingModule

NUM_TEST = 31  # not a multiple of two
NUM_UNSCORED = 3


class AlikeStarts(NeuralEM):
    """Starts each image with the same responsibilities, in any batch and any process."""

    def start(self, image, num_components, generator=None):
        alike = super().start(image[:1], num_components, torch.Generator().manual_seed(0))
        shape = (len(image), num_components)
        values = {field.name: getattr(alike, field.name) for field in dataclasses.fields(alike)}
        return Iterate(**{name: value.expand(*shape, *value.shape[2:]).contiguous() for name, value in values.items()})


class OddImages(TinyImages):
    """An odd number of test images. With several frames, the images move to the right, a pixel a frame."""

    def __init__(self, batch_size: int, num_frames: int) -> None:
        super().__init__(batch_size=batch_size)
        self.num_frames = num_frames

    def load(self, stage: str) -> TensorFrames:
        still = super().load(stage)
        frames, groups = (
            torch.cat([part.roll(by, -1) for by in range(self.num_frames)], 1) for part in (still.frames, still.groups)
        )
        images = TensorFrames(frames, groups)
        if stage == "train":
            return images
        repeated = torch.arange(NUM_TEST) % len(images)
        groups = images.groups[repeated]
        groups[[0, 3, 4]] = 0  # images without a scored pixel, in both processes
        return TensorFrames(images.frames[repeated], groups)


def fit(rank: int, world: int, port: int, folder: str, num_frames: int) -> None:
    """Train and test as one of ``world`` processes, and write what the process saw."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world)
        )
    own = Path(folder) / str(rank)
    own.mkdir()
    torch.manual_seed(0)
    loss = NeuralEMLoss(Bernoulli(), step_weights="all")
    em = AlikeStarts(RecurrentMStep(SHAPE, hidden_size=8), Bernoulli(), loss, num_components=2, num_steps=3)
    module = GroupingModule(em, default_scores(), functools.partial(torch.optim.Adam, lr=1e-2))
    trainer = tiny_trainer(
        own,
        max_epochs=3,
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=CSVLogger(own),
        callbacks=[ModelCheckpoint(own, filename="best", monitor="val/reconstruction_error")],
        plugins=[WholeFiles()],
    )
    data = OddImages(16 // world, num_frames)
    trainer.fit(module, data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    trainer.test(module, data, verbose=False)
    weights = {name: value.tolist() for name, value in em.state_dict().items()}
    scores = scores_of(module)
    result = {
        "metrics": metrics,
        "weights": weights,
        "by_step": scores.by_step,
        "images": scores.num_images,
        "unscored": scores.unscored_images,
        "wrote": sorted(path.name for path in own.iterdir()),
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))


@pytest.fixture(scope="module", params=[1, 4], ids=["stills", "sequences"])
def results(request, tmp_path_factory) -> dict[str, dict]:
    """What each process saw: "alone" is a single process; "first" and "second" ran together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forking()
    folders = {world: tmp_path_factory.mktemp(f"of{world}") for world in (1, 2)}
    processes = [
        context.Process(target=fit, args=(rank, world, port, str(folder), request.param))
        for world, folder in folders.items()
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    paths = {"alone": folders[1] / "0.json", "first": folders[2] / "0.json", "second": folders[2] / "1.json"}
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def test_two_processes_train_as_one_with_twice_the_batch(results):
    alone, first, second = results["alone"], results["first"], results["second"]
    assert first["weights"] == second["weights"]
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(torch.tensor(first["weights"][name]), torch.tensor(weight), rtol=1e-4, atol=1e-5)
    validated = [name for name in alone["metrics"] if name.startswith("val/")]
    assert len(validated) == 10
    for name in validated:
        assert first["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), name
        assert second["metrics"][name] == first["metrics"][name]


def test_no_image_is_scored_twice(results):
    for result in results.values():
        assert result["images"] == NUM_TEST and result["unscored"] == NUM_UNSCORED
    for step, expected in enumerate(results["alone"]["by_step"]):
        for name, score in expected.items():
            assert results["first"]["by_step"][step][name] == pytest.approx(score, rel=1e-4, abs=1e-6), name


def test_only_the_first_process_writes(results):
    assert results["first"]["wrote"] == ["best.ckpt", "lightning_logs"]
    assert results["second"]["wrote"] == []
