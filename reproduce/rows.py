"""The rows of the results table: what is trained, by which command, and what costs nothing."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nem_lightning.errors import InputError, require
from nem_lightning.runs import command_line  # noqa: F401 (what the configs may call)

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2, 3, 4)
STEPS = (1, 2, 3, 5, 7, 10, 15, 20)
"""T of the rows ``recipe_T<T>``. The recipe's own T is the row ``recipe``, and is not trained twice."""
RECIPE = ("experiment=recipe_shapes",)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: in file names and for ``--rows``.
        title: in tables and figures.
        overrides: of ``train.py``; empty for a baseline, which is not trained.
        by_step: whether it is also scored at every T from 1 to 20.
        other_k: whether it is also scored with other K and with other numbers of objects.
        convergence: whether the log likelihood and Q are followed step by step.
        pictured: whether its groupings are drawn.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    by_step: bool = False
    other_k: bool = False
    convergence: bool = False
    pictured: bool = False

    @property
    def is_trained(self) -> bool:
        return bool(self.overrides)

    def arguments(self, seed: int, extra: Sequence[str] = ()) -> list[str]:
        """What follows ``train.py`` on the command line, but for where the run lies and its logger."""
        return [*self.overrides, f"seed={seed}", *extra]


TRAINED = (
    Row("recipe", "RNN-EM, our recipe", RECIPE, by_step=True, other_k=True, convergence=True, pictured=True),
    Row("rnn_em", "RNN-EM, as published", ("experiment=rnn_em_shapes",), by_step=True, convergence=True),
    Row("nem", "N-EM, as published", ("experiment=nem_shapes",), by_step=True, convergence=True, pictured=True),
)
BASELINES = (
    Row("kmeans", "k-means on (x, y), K=3"),
    Row("gmm", "Gaussian mixture on (x, y), K=3"),
    Row("components", "4-connected components"),
    Row("chance", "chance, K=3"),
)
EM_STEPS = tuple(
    Row(f"recipe_T{steps}", f"our recipe, T={steps}", (*RECIPE, f"model.num_steps={steps}")) for steps in STEPS
)
ABLATIONS = tuple(
    Row(f"without_{name}", title, (*RECIPE, change))
    for name, title, change in (
        ("starts", "one start", "model.num_starts=1"),
        ("seeds", "first gamma: noise", "model.em.first=noise"),
        ("lambda", "lambda 2", "model.loss.prior_weight=2"),
        ("detaching", "gradients through gamma", "model.em.differentiate_responsibilities=true"),
        ("all_steps", "loss on the last step", "model.loss.step_weights=last"),
        ("layer_norm", "no layer normalisation", "model.em.m_step.layer_norm=false"),
        ("units", "480 units", "model.em.m_step.hidden_size=480"),
        ("noise", "bit flips 0.1", "model.corruption.prob=0.1"),
        ("lr", "Adam 2e-3", "model.optimizer.lr=2e-3"),
        ("stop", "5 epochs", "trainer.max_epochs=5"),
    )
)
"""The recipe with one thing changed."""
ROWS = {row.name: row for row in (*BASELINES, *TRAINED, *EM_STEPS, *ABLATIONS)}
GROUPS = {"baselines": BASELINES, "trained": TRAINED, "em_steps": EM_STEPS, "ablations": ABLATIONS}


def select(names: str) -> list[Row]:
    """The rows that ``--rows`` names: rows and groups of rows, with commas between them; "all" is all of them.

    Raises:
        InputError: an unknown name.
    """
    chosen: dict[str, Row] = {}
    for name in ROWS if names == "all" else names.split(","):
        require(
            name in ROWS or name in GROUPS,
            f"--rows={names}: there is no row {name!r}; rows are all, {', '.join((*GROUPS, *ROWS))}",
        )
        chosen |= {row.name: row for row in GROUPS.get(name) or [ROWS[name]]}
    return list(chosen.values())


def parse_seeds(text: str) -> list[int]:
    """What ``--seeds`` names: integers from 0, with commas between them.

    Raises:
        InputError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    require(
        all(part.isdecimal() and part.isascii() and int(part) < 2**32 for part in parts),
        f"--seeds={text}: must be integers from 0 with commas between them, such as 0,1,2",
    )
    return list(dict.fromkeys(map(int, parts)))


@functools.cache
def settings(row: Row, extra: tuple[str, ...] = ()) -> DictConfig:
    """What ``train.py`` composes for a row; what depends on the run's folder is left unresolved.

    Raises:
        InputError: overrides that do not fit.
    """
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", overrides=[*row.overrides, *extra])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"{row.name}: {' '.join([*row.overrides, *extra])}: {str(error).splitlines()[0]}") from error


def is_the_recipe_itself(row: Row, extra: tuple[str, ...] = ()) -> bool:
    """Whether a row ``recipe_T<T>`` has the recipe's own T."""
    if row not in EM_STEPS:
        return False
    return settings(row, extra).model.num_steps == settings(ROWS["recipe"], extra).model.num_steps
