"""The rows of the results: names, titles, and settings of ``train.py``."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from nem_lightning.errors import InputError, require

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2, 3, 4)
STEPS = (1, 2, 3, 5, 7, 10, 15, 20)
"""T of the rows ``steps_T<T>`` (10 is ``rnn_em`` itself) and ``published_T<T>``, and of the tests of rows that are
``in_detail``."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        name: in file names and for ``--rows``.
        title: in tables and figures.
        overrides: of ``train.py``, or of ``evaluate.py`` if the row is not trained.
        trained: whether there is anything to train.
        in_detail: whether it is also scored by T, by K and by number of objects, followed step by step, and drawn.
    """

    name: str
    title: str
    overrides: tuple[str, ...]
    trained: bool = True
    in_detail: bool = False


def _flying(name: str, title: str, *overrides: str, test_batches: int = 16) -> Row:
    limits = ("trainer.limit_val_batches=10", f"trainer.limit_test_batches={test_batches}")
    return Row(name, title, (*overrides, *limits))


def _convolutions(name: str, *overrides: str) -> Row:
    settings = (*overrides, "experiment=flying_shapes_conv")
    return _flying(name, "convolutions, 4 iterations a frame", *settings, test_batches=4)  # 16 would take an hour


def _digits(name: str, title: str, *overrides: str) -> Row:
    return _flying(name, title, "data=flying_mnist", "experiment=flying_mnist_sprites", *overrides)


def _after(stage: str) -> str:
    """Begin with the weights of an earlier stage's run with the same seed."""
    return f"weights_from=${{paths.run_dir}}/../../flying_mnist_2_{stage}/seed-${{seed}}/checkpoints/best.ckpt"


_ALL = "data.num_digits_used=all"
_STAGES = "gated, sprites, in stages"
_LONGER = ("model.num_steps=20", "data.num_frames=21", "optimizer.lr=2e-3", "trainer.max_epochs=2")
_PLAIN = ("model.num_steps=20",)
_DENSE = (*_PLAIN, "m_step/network=dense", "model.m_step.hidden_size=32", "optimizer.lr=5e-3")
_ITERATIONS = "experiment=flying_shapes_dense"
_SPRITES = "experiment=flying_shapes_sprites"
_FIVE = ("data=flying_shapes", "data.num_objects=5", "model.num_components=5")


def _ablation(path: Path) -> Row:
    title = path.read_text().splitlines()[1].removeprefix("# ")
    return Row(f"ablation_{path.stem}", title, ("model=rnn_em", f"ablation={path.stem}"))


def _peer(data: str, model: str, title: str, *overrides: str, trained: bool = True) -> Row:
    of_data = {"shapes20": ("data=shapes", "data.size=20")}.get(data, (f"data={data}",))
    few = ("trainer.limit_val_batches=10", "trainer.limit_test_batches=1") if trained else ()
    return Row(f"{data}_{model}", title, (*of_data, *overrides, *few), trained)  # the data first: see peers.tests


def _on_shapes(data: str) -> tuple[Row, ...]:
    single = ("experiment=reconstruction_clustering_shapes",)
    return (
        _peer(data, "rnn_em", "RNN-EM", "model=rnn_em"),
        _peer(data, "nem", "N-EM", "model=nem"),
        _peer(data, "rc_single", "Reconstruction Clustering, single", *single),
        _peer(data, "rc", "Reconstruction Clustering, hard", "model=reconstruction_clustering"),
        _peer(data, "tagger", "Tagger, dense", "model=tagger", *_TAGGER),
        _peer(data, "slots", "Slot Attention", "model=slot_attention", *_SLOTS),
        _peer(data, "kmeans", "k-means on (x, y)", "model=position_kmeans", trained=False),
        _peer(data, "gmm", "Gaussian mixture on (x, y)", "model=position_mixture", trained=False),
        _peer(data, "mixture", "mixture of whole images", "model=mixture", trained=False),
        _peer(data, "components", "connected components", "model=connected_components", trained=False),
    )


def _on(data: str, components: int) -> tuple[Row, ...]:
    k, single = f"model.num_components={components}", f"experiment=reconstruction_clustering_{data}"
    return (
        _peer(data, "rnn_em", "RNN-EM", "model=rnn_em", k),
        _peer(data, "rc_single", "Reconstruction Clustering, single", single),
        _peer(data, "rc", "Reconstruction Clustering, hard", "model=reconstruction_clustering", k),
        _peer(data, "kmeans", "k-means on (x, y)", "model=position_kmeans", k, trained=False),
    )


_TAGGER = ("model.mapping=dense", "model.hidden_sizes=[500,500]", "trainer.max_epochs=5", "optimizer.lr=1e-3")
_SLOTS = ("trainer.max_epochs=1", "trainer.limit_train_batches=750")  # as many seconds as RNN-EM
_SETS = {"corners": 5, "bars": 12, "mnist_shape": 2, "multi_mnist": 3}
"""The other data sets of Reconstruction Clustering, and how many objects their images have."""
_PEERS = (*_on_shapes("shapes"), *_on_shapes("shapes20"), *(row for name, k in _SETS.items() for row in _on(name, k)))


def _growth(factor: str, value: int, *overrides: str) -> Row:
    validation = 1 if factor == "images" else 10  # a hundred short epochs validate often
    few = (f"trainer.limit_val_batches={validation}", "trainer.limit_test_batches=16")
    return Row(f"growth_{factor}_{value}", f"RNN-EM, {factor} {value:,}", ("model=rnn_em", *overrides, *few))


_GROWTH = (
    _growth("units", 250),  # the default settings: also of 50,000 training images, and of images of 28 x 28
    *(_growth("units", units, f"model.m_step.hidden_size={units}") for units in (10, 25, 50, 100, 500, 1000)),
    *(
        _growth("images", images, f"data.train_images={images}", f"trainer.max_epochs={100_000 // images}")
        for images in (1_000, 2_500, 10_000, 100_000)
    ),
    _growth("images", 1_000_000, "data.train_images=1000000", "trainer.max_epochs=1"),
    *(_growth("size", size, f"data.size={size}") for size in (20, 40, 56, 112)),  # 40 x 40 is also three objects
    *(
        _growth("objects", count, "data.size=40", f"data.num_objects={count}", f"model.num_components={count}")
        for count in (2, 5, 8, 12)
    ),
)
"""One thing grows: units, training images (as many updates for each, but a million), the image, objects and K on images
of 40 x 40."""

_AS_PUBLISHED = ("experiment=rnn_em_shapes",)
_FROM_NOISE = ("model.init=noise", "model.m_step.layer_norm=false", "model.corruption.prob=0.1")
_FROM_NOISE += ("optimizer.lr=1e-3", "trainer.max_epochs=3")


def _on_all_steps(name: str, title: str, epochs: int, *overrides: str) -> Row:
    overrides = (*_AS_PUBLISHED, "model.loss.step_weights=all", *overrides, f"trainer.max_epochs={epochs}")
    return Row(f"published_{name}", f"RNN-EM, published, loss on all steps{title}", overrides)


GROUPS = {
    "baselines": (
        Row("kmeans", "k-means on (x, y), K=3", ("model=position_kmeans",), trained=False),
        Row("gmm", "Gaussian mixture on (x, y), K=3", ("model=position_mixture",), trained=False),
        Row("components", "4-connected components", ("model=connected_components",), trained=False),
        Row("chance", "chance, K=3", ("model=chance",), trained=False),
    ),
    "trained": (
        Row("rnn_em", "RNN-EM, default settings", ("model=rnn_em",), in_detail=True),
        Row("rnn_em_accurate", "RNN-EM, most accurate settings", ("model=rnn_em_accurate",)),
        Row("rnn_em_sprites", "RNN-EM, gated units and sprites, noise starts", ("experiment=rnn_em_sprites",)),
        Row("rnn_em_published", "RNN-EM, as published", _AS_PUBLISHED, in_detail=True),
        Row("nem", "N-EM, default settings", ("model=nem",)),
        Row("nem_published", "N-EM, as published", ("experiment=nem_shapes",), in_detail=True),
    ),
    "published": (
        Row(
            "published_noise_by_step",
            "RNN-EM, published, noise by step",
            (*_AS_PUBLISHED, "model.noise_by_step=true"),
        ),
        _on_all_steps("all_steps", "", 10),
        _on_all_steps("detached", ", gamma detached", 10, "model.differentiate_responsibilities=false"),
        Row("from_noise", "RNN-EM, best settings found from noise", ("model=rnn_em", *_FROM_NOISE)),
    ),
    "published_steps": tuple(
        Row(
            f"published_T{steps}",
            f"RNN-EM, as published, T={steps}, 20 epochs",
            (*_AS_PUBLISHED, f"model.num_steps={steps}", "trainer.max_epochs=20"),
        )
        for steps in STEPS
    ),
    "steps": tuple(
        Row(f"steps_T{steps}", f"RNN-EM, T={steps}", ("model=rnn_em", f"model.num_steps={steps}"))
        for steps in STEPS
        if steps != 10
    ),
    "sequences": (
        _flying("flying_shapes_3", "dense network", "data=flying_shapes", *_DENSE, "trainer.max_epochs=3"),
        _flying("flying_shapes_3_iterations", "dense, 4 iterations a frame", "data=flying_shapes", _ITERATIONS),
        _flying("flying_shapes_3_sprites", "gated, sprites", "data=flying_shapes", _SPRITES),
        _flying("flying_shapes_3_plain", "plain network", "data=flying_shapes", *_PLAIN),
        _convolutions("flying_shapes_3_conv", "data=flying_shapes"),
        _flying("flying_shapes_3_K1", "dense network", "data=flying_shapes", "model.num_components=1", *_DENSE),
        _flying("flying_shapes_5", "dense network", *_FIVE, *_DENSE),
        _flying("flying_shapes_5_iterations", "dense, 4 iterations a frame", *_FIVE, _ITERATIONS),
        _flying("flying_shapes_5_sprites", "gated, sprites", *_FIVE, _SPRITES, "trainer.max_epochs=3"),
        _flying("flying_shapes_5_plain", "plain network", *_FIVE, *_PLAIN),
        _convolutions("flying_shapes_5_conv", *_FIVE, "trainer.max_epochs=2", "trainer.limit_train_batches=300"),
        _digits("flying_mnist_2_direct", "gated, sprites", _ALL),
        _digits("flying_mnist_2_20", "gated, sprites", "data.num_digits_used=20", "trainer.max_epochs=2"),
        _digits("flying_mnist_2_500", _STAGES, _after("20"), "data.num_digits_used=500", "trainer.max_epochs=2"),
        _digits("flying_mnist_2_all", _STAGES, _after("500"), _ALL),
        _digits("flying_mnist_2_longer", f"{_STAGES}, then T=20", _after("all"), _ALL, *_LONGER),
    ),
    "growth": _GROWTH,
    "peers": _PEERS,
    "ablations": tuple(_ablation(path) for path in sorted((ROOT / "conf" / "ablation").glob("*.yaml"))),
}
ROWS = {row.name: row for rows in GROUPS.values() for row in rows}


def select(names: str) -> list[Row]:
    """Give the rows that ``--rows`` names: rows and groups of rows, with commas between them; "all" is all of them.

    Raises:
        InputError: an unknown name.
    """
    chosen: dict[str, Row] = {}
    for name in ROWS if names == "all" else names.split(","):
        allowed = ", ".join(("all", *GROUPS, *ROWS))
        require(name in ROWS or name in GROUPS, f"--rows={names}: there is no row {name!r}; rows are {allowed}")
        chosen |= {row.name: row for row in GROUPS.get(name) or [ROWS[name]]}
    return list(chosen.values())


def parse_seeds(text: str) -> list[int]:
    """Give what ``--seeds`` names: integers from 0, with commas between them.

    Raises:
        InputError: anything else.
    """
    parts = text.split(",")
    fits = all(part.isdecimal() and part.isascii() and int(part) < 2**32 for part in parts)
    require(fits, f"--seeds={text}: must be integers from 0 with commas between them, such as 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


@functools.cache
def settings(row: Row, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Compose the settings of ``train.py`` for a row, as plain values; the run's folder is a placeholder.

    Args:
        row: the row.
        extra: further overrides.

    Raises:
        InputError: overrides that do not fit.
    """
    pixels = (
        "{shape:[1,24,24],binary:false}" if "data=flying_mnist" in row.overrides else "{shape:[1,28,28],binary:true}"
    )
    known = ("paths.run_dir=run", "paths.sweep_name=null", "logger=none", f"pixels={pixels}")
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", overrides=[*known, *row.overrides, *extra])
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]  # the config is a mapping
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"{row.name}: {' '.join([*row.overrides, *extra])}: {str(error).splitlines()[0]}") from error


def row_path(results: Path, row: str, seed: int) -> Path:
    """Give the path of the scores of a row with a seed."""
    return results / "rows" / f"{row}_seed{seed}.json"


def read(path: Path) -> dict[str, Any]:
    """Read the scores of a row with a seed.

    Raises:
        InputError: the file does not exist, or does not hold the scores of a row.
    """
    try:
        found = json.loads(path.read_text())
        _ = [found[name] for name in ("row", "title", "seed", "images", "headings", "fingerprint")]
        _ = found["scores"]["val"], found["scores"]["test"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; python -m reproduce score writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the scores of a row; delete it, and score the row again") from error
    return found
