"""The page of the report, and the command that writes it."""

import base64
import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from commands import Command
from conftest import ROOT
from PIL import Image
from run_folders import write_run, write_sweep

from nem_lightning.report import page
from nem_lightning.report.runs import find
from nem_lightning.report.sweep import Sweep


class TestPage:
    def test_everything_is_escaped_and_nothing_is_fetched(self, tmp_path):
        bad = "<script>alert(1)</script>&\"'"
        write_run(tmp_path / "a", **{bad: 1, "optimizer__lr": bad})
        write_run(tmp_path / "b<b>", **{bad: 2}, ami=None)
        (tmp_path / "b<b>" / "error.txt").write_text(f"{bad}$x_$")
        written = page.render(Sweep(find([tmp_path])), bad)
        assert "<script>alert" not in written and "b<b>" not in written
        assert written.count("<script") == 1
        assert not re.search(
            r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"<code>.*?</code>|data:image\S*", "", written)
        )

    def test_pictures_are_kept_small(self, tmp_path, monkeypatch):
        runs = [write_run(tmp_path / str(i), model__num_steps=i + 1, ami=0.5 + i / 10) for i in range(3)]
        for run in runs:
            noise = np.random.default_rng(0).integers(0, 255, (500, 1500, 3), dtype=np.uint8)
            Image.fromarray(noise).save(run / "groupings.png")
        Image.new("RGB", (3000, 1000)).save(runs[-1] / "gallery.png")
        sweep = Sweep(find([tmp_path]))
        written = page.render(sweep, "title")
        assert written.count("data:image/webp") == 3  # made smaller
        assert written.count("data:image/png") == 1  # already small
        size = (len(written) - 50_000) / 3
        monkeypatch.setattr(page, "PICTURE_BYTES", 2.5 * size)
        assert page.render(sweep, "title").count("data:image/webp") == 2
        assert "2 of the 3 configurations are shown" in " ".join(page.render(sweep, "title").split())

    def test_an_animation_moves(self, tmp_path):
        run = write_run(tmp_path / "one")
        first, second = (Image.new("RGB", (30, 10), colour) for colour in ("red", "blue"))
        first.save(run / "animation.gif", save_all=True, append_images=[second])
        written = page.render(Sweep(find([tmp_path])), "title")
        (encoded,) = re.findall(r"data:image/gif;base64,([^\"]+)", written)
        assert base64.b64decode(encoded) == (run / "animation.gif").read_bytes()

    def test_a_score_of_your_own_is_a_column(self, tmp_path):
        for name, shown in (("a", None), ("b", ["my score", ".1%"]), ("c", ["later", ".4f"])):
            run = write_run(tmp_path / name, seed=ord(name))
            scores = json.loads((run / "scores.json").read_text())
            scores["headings"] |= {"mine": shown} if shown else {}
            scores["by_step"][-1] |= {"mine": 0.25, "new": 1 / 3}
            (run / "scores.json").write_text(json.dumps(scores))
        sweep = Sweep(find([tmp_path]))
        columns = page.columns(sweep)
        titles = ["AMI (max)", "ARI", "squared error", "my score", "new", "best score", "epochs"]
        assert [column.heading.title for column in columns] == titles
        written = page.render(sweep, "title")
        assert "my score" in written and ">25.0%" in written and ">0.3333" in written
        assert "loss_intra" not in written and "test/loss_intra" in page.to_csv(sweep)
        assert page.to_csv(sweep).count("0.25,") == 3

    def test_a_heading_that_cannot_be_used_is_told(self, tmp_path):
        run = write_run(tmp_path / "run")
        (run / "scores.json").write_text((run / "scores.json").read_text().replace(".3f", "nonsense"))
        (found,) = find([tmp_path])
        assert found.status == "finished" and "ami_max has the heading" in found.problems[0]
        assert "0.8" in page.render(Sweep([found]), "title")

    def test_models_are_named(self, tmp_path):
        write_run(tmp_path / "a")
        write_run(tmp_path / "b", model__m_step={"_target_": "nem_lightning.models.m_steps.GradientMStep"})
        write_run(tmp_path / "c", model={"_target_": "mine.KMeans", "num_steps": 2})
        assert "RNN-EM and N-EM and KMeans on Shapes" in page.render(Sweep(find([tmp_path])), "title")

    def test_table_beside_the_page(self, tmp_path):
        table = page.write([write_sweep(tmp_path)], tmp_path / "report.html")
        rows = list(csv.DictReader(table.read_text().splitlines()))
        assert [row["status"] for row in rows] == ["finished"] * 5 + ["failed"]
        assert rows[4]["model.num_steps"] == "10" and float(rows[4]["test/ami_max"]) == 0.84
        assert rows[5]["problem"] == "NonFiniteLoss: the loss is not finite" and rows[5]["test/ami_max"] == ""


@pytest.fixture
def report(tmp_path_factory):
    """Run the command, and give its output. Its exit status must be ``status``."""

    def finish(*arguments: object, status: int = 0) -> str:
        folder = tmp_path_factory.mktemp("printed")
        return Command("-m", "nem_lightning.report", *map(str, arguments), folder=folder).end(status)

    return finish


class TestCommand:
    def test_writes_beside_the_runs_or_where_told(self, report, tmp_path):
        write_run(tmp_path / "sweep" / "run")
        for _ in range(2):  # an earlier report is replaced
            report(tmp_path / "sweep")
        report(tmp_path / "sweep", "--output", tmp_path / "new" / "a.html")
        for folder, name in (("sweep", "report"), ("new", "a")):
            assert {"html", "csv"} == {path.name.removeprefix(f"{name}.") for path in (tmp_path / folder).glob("*.*")}

    @pytest.mark.parametrize("name", ["empty", "absent"])
    def test_no_runs_is_one_line(self, report, tmp_path, name):
        (tmp_path / "empty").mkdir()
        printed = report(tmp_path / name, status=1)
        assert printed.count("\n") == 1 and str(tmp_path / name) in printed
        assert [path.name for path in tmp_path.rglob("*")] == ["empty"]

    def test_the_output_is_html(self, report, tmp_path):
        assert "must end in .html" in report(write_run(tmp_path / "run"), "--output", tmp_path / "a.csv", status=1)

    def test_no_heavy_imports(self):
        names = ("torch", "pytorch_lightning", "hydra", "wandb", "scipy", "matplotlib.pyplot")
        code = f"import sys, nem_lightning.report.page; assert not {{*{names}}} & sys.modules.keys()"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
