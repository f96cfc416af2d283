"""The page, and the table next to it."""

import base64
import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

import nem_lightning
from nem_lightning.files import atomic_file
from nem_lightning.headings import Heading
from nem_lightning.report import charts
from nem_lightning.report.runs import Run, find
from nem_lightning.report.sweep import Configuration, Sweep, best_first, shown
from nem_lightning.runs.settings import ABSENT

PICTURES = {"gallery.png": "Gallery", "groupings.png": "Grouping by EM step", "animation.gif": "Animation"}
PICTURE_WIDTH = 1400
SMALL_PICTURE_BYTES = 60_000
PICTURE_BYTES = 6_000_000  # of all pictures together
MODELS = {"RecurrentMStep": "RNN-EM", "GatedMStep": "RNN-EM, gated", "GradientMStep": "N-EM"}


@dataclass(frozen=True)
class Column:
    """A column of the tables: the number's name in ``scores.json``, its heading, and the group of the heading."""

    name: str
    heading: Heading
    group: str = "Test, after the last EM step"

    def text(self, value: float) -> str:
        return "" if math.isnan(value) else format(value, self.heading.format)


def columns(sweep: Sweep) -> list[Column]:
    """Give the columns: each test score that has a title, then numbers of the training."""
    tests = [Column(name, heading) for name, heading in sweep.headings.items() if heading.title]
    best = Column("best_score", Heading("best score", ".4g"), "Validation")
    return [*tests, best, Column("epochs", Heading("epochs", ".4g"), "Training")]


def write(folders: Sequence[Path], output: Path) -> Path:
    """Write the page, and next to it a table of the runs with the suffix ``.csv``.

    Returns:
        The path of the table.

    Raises:
        InputError: a folder does not exist, no folder has a run, or the page cannot be written.
    """
    sweep = Sweep(find(folders))
    page, table = render(sweep, " + ".join(folder.resolve().name for folder in folders)), to_csv(sweep)
    beside = output.with_suffix(".csv")
    for path, text in ((output, page), (beside, table)):
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return beside


def render(sweep: Sweep, title: str) -> str:
    """Render the page. All text from files is escaped."""
    looks = charts.Looks.of(sweep)
    pictures = _pictures(sweep)  # before the problems are listed, because it may add some
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = lambda value, key: shown(key, value)
    environment.tests["number"] = math.isfinite
    return environment.get_template("page.html").render(
        sweep=sweep,
        title=title,
        written=datetime.now().astimezone(),
        version=nem_lightning.__version__,
        data=_names(sweep, _data),
        models=_names(sweep, _model),
        columns=columns(sweep),
        ami=Column("ami_max", sweep.headings.get("ami_max", Heading(""))),
        looks=looks,
        look_of=dict(zip(looks.drawn, looks.lines, strict=True)).get,
        attention=[run for run in sweep.runs if run.error or run.problems],
        curves=charts.curves(looks),
        steps=charts.by_setting(sweep) + charts.by_step(looks),
        pictures=pictures,
        parent=Path(os.path.commonpath([run.folder.resolve().parent for run in sweep.runs])),
        absent=ABSENT,
    )


def to_csv(sweep: Sweep) -> str:
    """Give a row for each run: its folder, status, settings that differ, and test scores after the last step."""
    scores = list(sweep.headings)
    settings = [setting.key for setting in sweep.settings]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["folder", "status", "problem", "seed", *settings, "epochs", "best_score", *(f"test/{name}" for name in scores)]
    )
    for run in sweep.runs:
        known = [run.settings.get(key, "") for key in ("seed", *settings)]
        numbers = [run.score(name) for name in ("epochs", "best_score", *scores)]
        problem = "; ".join(filter(None, [run.error, *run.problems]))
        writer.writerow([run.folder, run.status, problem, *known, *("" if math.isnan(n) else n for n in numbers)])
    return file.getvalue()


def _names(sweep: Sweep, name_of: Callable[[Run], str]) -> str:
    return " and ".join(dict.fromkeys(name_of(run) for run in sweep.runs if run.settings))


def _model(run: Run) -> str:
    m_step, model = (_class(run, f"{part}._target_") for part in ("model.m_step", "model"))
    return MODELS.get(m_step, model)


def _data(run: Run) -> str:
    return _class(run, "data._target_").removesuffix("DataModule")


def _class(run: Run, key: str) -> str:
    return shown(key, run.settings.get(key, ""))


@dataclass(frozen=True)
class Pictures:
    """Pictures of a configuration's best finished run: what each shows, and the picture as a ``data:`` URL."""

    configuration: Configuration
    run: Run
    urls: dict[str, str]


def _pictures(sweep: Sweep) -> list[Pictures]:
    """Give the pictures of the best configurations, in their order, up to ``PICTURE_BYTES``."""
    size, found = 0, {}
    for one in best_first(sweep.configurations):
        run = one.best_run
        if run is None:
            continue
        urls = _picture_urls(run)
        size += sum(map(len, urls.values()))
        if size > PICTURE_BYTES:
            break
        if urls:
            found[one] = Pictures(one, run, urls)
    return [found[one] for one in sweep.configurations if one in found]


def _picture_urls(run: Run) -> dict[str, str]:
    urls = {}
    for name, what in PICTURES.items():
        if (run.folder / name).exists():
            try:
                urls[what] = _data_url(run.folder / name)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all errors of Pillow
                run.problems.append(f"{name}: is not a picture, or cut short")
    return urls


def _data_url(path: Path) -> str:
    """Encode a small PNG and an animation unchanged, any other picture as WebP, at most ``PICTURE_WIDTH`` wide."""
    with Image.open(path) as image:
        image.load()
    if image.format == "GIF" or (image.format == "PNG" and path.stat().st_size <= SMALL_PICTURE_BYTES):
        kind, content = image.format.lower(), path.read_bytes()
    else:
        picture, file = image.convert("RGB"), io.BytesIO()
        picture.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        picture.save(file, "WEBP", quality=82)
        kind, content = "webp", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
