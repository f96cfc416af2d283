"""The rows of other models: ``evaluate.py`` scores each on the same images, also with a larger K and other starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure

from nem_lightning.colours import groups_colours, image_pixels
from nem_lightning.datamodules.base import FramesDataModule
from nem_lightning.files import atomic_file
from nem_lightning.mosaics import DPI, Mosaic
from nem_lightning.runs.hints import argument
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule
from reproduce import tables
from reproduce.evaluation import Run, evaluated, write_scores
from reproduce.rows import GROUPS, Row, settings
from reproduce.scoring import BATCH

BATCHES = 16
"""Test batches."""
DRAWN, DRAWN_IMAGES = ("shapes", "shapes20"), 12
"""The data sets of which pictures are drawn, and how many test images."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
STARTS = 16
"""Of the test with several starts; models that have several by default are tested with one as well."""
PUBLISHED = {
    "shapes_rnn_em": "0.83",
    "shapes_nem": "0.41",
    "shapes_rc_single": "0.929",
    "shapes_rc": "0.777",
    "shapes20_rc_single": "0.61",
    "corners_rc_single": "0.854",
    "corners_rc": "0.704",
    "bars_rc_single": "0.952",
    "bars_rc": "0.852",
    "mnist_shape_rc_single": "0.546",
    "mnist_shape_rc": "0.260",
    "multi_mnist_rc_single": "0.652",
    "multi_mnist_rc": "0.614",
}
"""Published AMI of a row."""
INTRO = f"""# Other models

Written by `python -m reproduce tables` from `peers/`. Scores of pixels of exactly one object, means over the first \
{BATCH * BATCHES:,} test images of each set, after the last step; AMI normalised by the larger entropy (max) or by the \
mean (arithmetic). *K + 1* and *K + 2*: AMI (max) with more components than the model was trained with. *Images a \
second*: while training, validation included.
"""


def tests(row: Row) -> list[tuple[str, ...]]:
    """Give the overrides of ``evaluate.py`` for each test of a row: as trained, K + 1, K + 2, other starts."""
    config = settings(row)["model"]
    data = tuple(each for each in row.overrides if each.startswith("data") and "train_on" not in each)
    data += (f"trainer.limit_test_batches={BATCHES}",)
    k = config["num_components"]
    cases = [(), (f"num_components={k + 1}",), (f"num_components={k + 2}",)]
    cases.append(("num_starts=1",) if config["num_starts"] > 1 else (f"num_starts={STARTS}",))
    return [(*data, *case) for case in (cases if row.trained else cases[:1])]


def score(row: Row, seed: int, run: Run | None, folder: Path, results: Path, say: Callable[[str], None]) -> None:
    """Score a row by ``evaluate.py``; the scores of earlier tests are read from their files.

    Args:
        row: the row.
        seed: of the training, or of a model that is not trained.
        run: the finished run; None if the row is not trained.
        folder: of the tests.
        results: the folder of results.
        say: prints the commands.

    Raises:
        InputError: the run is not finished, has other settings, or a test failed.
    """
    facts: dict[str, Any] = {"command": f"python evaluate.py {' '.join(row.overrides)}"}
    best = None
    model = [each for each in row.overrides if each.startswith("model")] + [f"seed={seed}"]
    if run is not None:
        best = run.best_checkpoint
        facts, model = run.facts(), [argument("ckpt_path", best.absolute())]
        weights = checkpoints.load(best).parameters()
        facts["parameters"] = sum(weight.numel() for weight in weights)
        facts["training_images"] = _training_images(run)
    found = []
    for overrides in tests(row):
        test = "_".join(word.rpartition(".")[2].replace("=", "-") for word in (*row.overrides, *overrides))
        scores = evaluated(folder / "tests" / test, [*model, *overrides], best, say)
        counts = {name: scores[name] for name in ("num_images", "num_components", "num_steps", "num_starts")}
        of_last = {name: scores["by_step"][-1][name] for name in ("ami_max", "ami_arithmetic", "ari")}
        found.append({"overrides": list(overrides), **counts, **of_last})
    if row.name.partition("_")[0] in DRAWN and seed == 0:
        facts["pictures"] = _pictures(row, best)
    write_scores(results / "peers", row, seed, {**facts, "tests": found})


@torch.no_grad()
def _pictures(row: Row, checkpoint: Path | None) -> dict[str, Any]:
    """Give the first test images, their true groups and the labels that ``evaluate.py`` finds, as texts."""
    config = settings(row)
    data: FramesDataModule[Any] = instantiate(config["data"])
    data.prepare_data()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    if checkpoint is None:
        built = GroupingModule(instantiate(config["model"], image_shape=data.image_shape))
    else:
        built = checkpoints.load_module(checkpoint)
    module = built.eval()
    *_, last = module(batch["frames"], module.generator("test", 0), module.model.num_starts)
    found = {"image": batch["frames"][:, 0, 0], "groups": batch["groups"][:, 0], "labels": last.labels}
    return {name: [_as_text(image) for image in values[:DRAWN_IMAGES].int()] for name, values in found.items()}


def _as_text(image: torch.Tensor) -> str:
    """Give an image of integers below 36 as text: a digit or letter a pixel, a word a row."""
    return " ".join("".join(map(DIGITS.__getitem__, row)) for row in image.tolist())


def _as_image(text: str) -> torch.Tensor:
    """Give the image of :func:`_as_text`, (H, W)."""
    return torch.tensor([[int(digit, 36) for digit in row] for row in text.split()])


def _draw(rows: list[dict[str, Any]]) -> Figure:
    """Draw the same test images for each model; a component has the colour of the group that shares most with it."""
    first = rows[0]["pictures"]
    images, groups = (torch.stack([_as_image(text) for text in first[name]]) for name in ("image", "groups"))
    mosaic = Mosaic(2 + len(rows), len(images), images.shape[1:], label_width=290)
    for index, text in enumerate(("input", "true groups", *(row["title"] for row in rows))):
        mosaic.label(index, 0, text)
    for column, (image, true) in enumerate(zip(images, groups, strict=True)):
        mosaic.show(0, column, image_pixels(image[None]))
        mosaic.show(1, column, groups_colours(true, true))
        for index, row in enumerate(rows, start=2):
            labels = _as_image(row["pictures"]["labels"][column]) + 1
            mosaic.show(index, column, groups_colours(labels * image, true))
    return mosaic.figure()


def _training_images(run: Run) -> int:
    """Say how many images the run was trained on, each as often as it was seen."""
    last = checkpoints.read(run.folder / "checkpoints" / "last.ckpt")
    return last["global_step"] * last[checkpoints.KEY]["data"]["batch_size"]


def write(results: Path) -> Path | None:
    """Write ``peers.md``, and give its path; None if there are no scores."""
    found = tables.by_row(results / "peers")
    if not found:
        return None
    head = ["data", "model", "seeds", "K", "T", "starts", "AMI (max)", "AMI (arithmetic)", "ARI", "published AMI"]
    head += ["K + 1", "K + 2", "other starts", "parameters", "seconds", "images a second"]
    cells, how = [head], [["data", "model", "seed", "command", "epochs", "stopped by", "machine"]]
    for row in GROUPS["peers"]:
        of_seeds = found.get(row.name, [])
        data = row.overrides[0].removeprefix("data=") + (" 20 x 20" if "data.size=20" in row.overrides else "")
        if of_seeds:
            cells.append([data, row.title, str(len(of_seeds)), *_numbers(of_seeds), PUBLISHED.get(row.name, "-")])
            cells[-1] += _further(of_seeds)
        for one in of_seeds:
            trained = [str(one.get("epochs", "-")), one.get("stop", "not trained"), tables.machine_of(one["machine"])]
            how.append([data, row.title, str(one["seed"]), f"`{one['command']}`", *trained])
    for data in DRAWN:
        rows = [one for row in GROUPS["peers"] for one in found.get(row.name, []) if one["row"].startswith(f"{data}_")]
        if drawn := [row for row in rows if "pictures" in row]:
            with atomic_file(results / f"peers_{data}.png") as file:
                _draw(drawn).savefig(file, format="png", dpi=DPI)
    path = results / "peers.md"
    with atomic_file(path) as file:
        commands = f"\n## How they were trained\n\n{tables.as_markdown(how)}\n"
        file.write_text(f"{INTRO}\n{tables.as_markdown(cells)}\n{commands}")
    return path


def _numbers(of_seeds: list[dict[str, Any]]) -> list[str]:
    """Give K, T, the number of starts, and the scores as trained."""
    first = of_seeds[0]["tests"][0]
    sizes = [str(first[name]) for name in ("num_components", "num_steps", "num_starts")]
    return sizes + [_mean(of_seeds, 0, name) for name in ("ami_max", "ami_arithmetic", "ari")]


def _further(of_seeds: list[dict[str, Any]]) -> list[str]:
    """Give the scores with a larger K and with other starts, and what the training took; "-" if not trained."""
    if "seconds" not in of_seeds[0]:
        return ["-"] * 6
    starts = of_seeds[0]["tests"][3]["num_starts"]
    seconds, images = (sum(one[name] for one in of_seeds) for name in ("seconds", "training_images"))
    return [
        *(_mean(of_seeds, test, "ami_max") for test in (1, 2)),
        f"{starts}: {_mean(of_seeds, 3, 'ami_max')}",
        f"{of_seeds[0]['parameters']:,}",
        f"{seconds / len(of_seeds):.0f}",
        f"{images / seconds:.0f}",
    ]


def _mean(of_seeds: list[dict[str, Any]], test: int, name: str) -> str:
    """Give the mean of a score over seeds, with the sample standard deviation if there are several."""
    found = tables.spread(one["tests"][test][name] for one in of_seeds)
    return tables.text({"of_mean": found.mean, "of_std": found.deviation}, "of", ".4f")
