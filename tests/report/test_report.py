"""The report: what it reads, counts, draws and writes."""

import base64
import csv
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from conftest import ROOT
from matplotlib.figure import Figure
from PIL import Image
from run_folders import write_metrics, write_run, write_sweep

from nem_lightning.errors import InputError
from nem_lightning.report import charts, page, svg
from nem_lightning.report.runs import Run, find, read
from nem_lightning.report.sweep import ABSENT, Spread, Sweep


def well_read(folder: Path) -> Run:
    run = read(folder)
    assert run is not None
    return run


def parts(spread: Spread) -> tuple:
    return spread.mean, spread.deviation, spread.count


class TestReading:
    def test_runs_are_found_and_nothing_else(self, tmp_path):
        write_run(tmp_path / "sweep" / "10_b")
        write_run(tmp_path / "sweep" / "2_a")
        inside = tmp_path / "sweep" / "2_a" / "wandb" / "files"
        shutil.copytree(tmp_path / "sweep" / "10_b", inside)  # W&B keeps a config.yaml in its folder
        shutil.copytree(tmp_path / "sweep" / "10_b", tmp_path / ".submitit" / "job")
        evaluation = tmp_path / "evaluations" / "now"
        evaluation.mkdir(parents=True)
        (evaluation / "config.yaml").write_text("split: test\nseed: 0\ndata: {size: 28}\n")
        found = [run.folder for run in find([tmp_path, tmp_path / "sweep"])]
        assert found == [tmp_path / "sweep" / "2_a", tmp_path / "sweep" / "10_b"]

    def test_later_versions_of_the_metrics_win(self, tmp_path):
        run = write_run(tmp_path / "run")
        write_metrics(run, 0, "0,4,10,,", "0,5,,0.1,", "1,9,8,,", "1,10,,0.2,", "2,14,99,,")
        write_metrics(run, 2, "1,11,6,,", "1,12,,0.4,", "2,13,,,7", "2,13,0.0,,7")  # the last two are of the test
        write_metrics(run, 10, "1,12,nan,0.5,", "2,15,4,,")
        curves = well_read(run).curves
        assert curves == {"train/loss": {1: 10, 2: 7, 3: 4}, "val/ami_max": {1: 0.1, 2: (0.2 + 0.5) / 2}}

    @pytest.mark.parametrize(
        ("file", "content", "status", "problem"),
        [
            ("config.yaml", "model: [", "unreadable", "config.yaml: is not YAML"),
            ("config.yaml", "", "unreadable", "config.yaml: holds no settings"),
            ("config.yaml", "seed: 0\ndata: {}\nmodel: {num_st", "unreadable", "config.yaml: is not YAML"),
            ("config.yaml", "seed: 0\ndata: {}\n", "unreadable", "config.yaml: model, paths is missing; cut short?"),
            ("scores.json", '{"by_step": [{"ami', "unfinished", "scores.json: is not JSON; cut short?"),
            ("scores.json", '{"by_step": []}', "unfinished", "scores.json: holds no scores by EM step"),
            ("scores.json", "[3]", "unfinished", "scores.json: holds no scores by EM step"),
            (
                "csv/version_0/metrics.csv",
                b"\xff\xfe\x00",
                "finished",
                "csv/version_0/metrics.csv: metrics.csv: is not",
            ),
            ("csv/version_0/metrics.csv", "epoch,step,train/loss\n0,0,1\n0,1,0.", "finished", "its last line is cut"),
            ("gallery.png", "\x89PNG", "finished", "gallery.png: is not a picture"),
        ],
    )
    def test_a_broken_file_is_told_and_the_page_is_written(self, tmp_path, file, content, status, problem):
        run = write_run(tmp_path / "run")
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        write_run(tmp_path / "well", model__num_steps=3)
        sweep = Sweep(find([tmp_path]))
        written = html.unescape(page.render(sweep, "title"))
        assert sweep.runs[0].status == status
        assert problem in " ".join(sweep.runs[0].problems)
        assert sweep.runs[0].problems[0] in written
        assert problem in page.to_csv(sweep)

    def test_a_value_cut_short_is_not_read(self, tmp_path):
        run = write_run(tmp_path / "run")
        (run / "csv" / "version_0").mkdir(parents=True)
        (run / "csv" / "version_0" / "metrics.csv").write_text("epoch,step,val/ami_max\n0,1,0.5\n1,2,0.")
        assert well_read(run).curves == {"val/ami_max": {1: 0.5}}

    def test_failed_and_unfinished_runs(self, tmp_path):
        write_run(tmp_path / "a", ami=None)
        failed = write_run(tmp_path / "b", ami=None)
        (failed / "error.txt").write_text("Traceback\nInputError: lr=0: must be positive\n\n")
        first, second = find([tmp_path])
        assert (first.status, second.status) == ("unfinished", "failed")
        assert second.error == "InputError: lr=0: must be positive"
        assert np.isnan(first.score("ami_max"))

    def test_a_run_that_failed_before_it_could_begin(self, tmp_path):
        write_run(tmp_path / "well")
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "error.txt").write_text("num_steps=0: must be positive\n")
        sweep = Sweep(find([tmp_path]))
        assert [run.status for run in sweep.runs] == ["failed", "finished"]
        assert "num_steps=0: must be positive" in page.render(sweep, "title")
        assert "The settings of no run could be read" in page.render(Sweep(find([tmp_path / "bad"])), "title")


class TestSweep:
    def test_mean_and_sample_deviation(self):
        assert parts(Spread.of([0.7, 0.72, 0.77])) == (pytest.approx(0.73), pytest.approx(np.sqrt(0.0026 / 2)), 3)
        alone = Spread.of([0.7])
        assert alone.mean == 0.7 and np.isnan(alone.deviation)
        assert np.isnan(Spread.of([]).mean)

    def test_configurations_are_all_but_the_seed(self, tmp_path):
        sweep = Sweep(find([write_sweep(tmp_path)]))
        assert [setting.key for setting in sweep.settings] == ["model.num_steps"]
        assert [(one.label, len(one.finished), len(one.runs)) for one in sweep.configurations] == [
            ("num_steps=2", 3, 3),
            ("num_steps=10", 2, 3),
        ]
        best = sweep.configurations[1]
        assert sweep.best is best
        assert parts(best.spread("ami_max")) == (pytest.approx(0.82), pytest.approx(np.std([0.8, 0.84], ddof=1)), 2)
        assert best.best_run is not None and best.best_run.seed == 1
        assert sweep.common["optimizer.lr"] == 0.001
        assert not {"paths.run_dir", "module.seed", "callbacks.last_checkpoint.dirpath"} & set(sweep.common)

    def test_a_seed_of_its_own_is_a_setting(self, tmp_path):
        write_run(tmp_path / "a", seed=0)
        write_run(tmp_path / "b", seed=1)
        config = (tmp_path / "b" / "config.yaml").read_text()
        (tmp_path / "b" / "config.yaml").write_text(config.replace("  seed: 1\nmodel", "  seed: 7\nmodel"))
        assert [setting.key for setting in Sweep(find([tmp_path])).settings] == ["data.seed"]

    def test_what_a_class_brings_along_is_no_column(self, tmp_path):
        gradient = {"_target_": "nem_lightning.models.m_steps.GradientMStep", "step_size": 1.0}
        for i, lr in enumerate((0.1, 0.2)):
            write_run(tmp_path / f"rnn{i}", optimizer__lr=lr)
            write_run(tmp_path / f"nem{i}", optimizer__lr=lr, model__m_step=gradient)
        settings = Sweep(find([tmp_path])).settings
        assert [setting.name for setting in settings] == ["m_step", "lr"]
        assert settings[0].followers == {"model.m_step.step_size": [1.0, ABSENT]}
        assert [setting.numeric for setting in settings] == [False, True]

    def test_where_a_run_lies_and_began_is_no_setting(self, tmp_path):
        for seed in (0, 1):
            folder = tmp_path / str(seed)
            own = {"callbacks__mine": {"file": f"{folder}/mine.txt"}, "logger": {} if seed else {"csv": {}}}
            write_run(folder, seed, ckpt_path=f"{seed}.ckpt", **own)
        assert not Sweep(find([tmp_path])).settings

    def test_true_is_not_one(self, tmp_path):
        write_run(tmp_path / "a", model__num_steps=1, ami=None)
        write_run(tmp_path / "b", model__num_steps=True, ami=None)
        assert len(Sweep(find([tmp_path])).configurations) == 2

    def test_of_equal_runs_a_finished_one_counts_and_the_last(self, tmp_path):
        for name, ami in (("a", 0.5), ("b", 0.6), ("c", None)):
            write_run(tmp_path / name, ami=ami)
        sweep = Sweep(find([tmp_path]))
        assert [run.folder.name for run in sweep.configurations[0].runs] == ["b"]
        assert [run.folder.name for run in sweep.repeated] == ["a", "c"]
        assert "another run with its settings and seed counts" in page.render(sweep, "title")

    def test_results_of_sweeps_merge(self, tmp_path):
        for seed in range(4):
            write_run(tmp_path / f"sweep{seed // 2}" / f"run{seed}", seed)
        sweep = Sweep(find([tmp_path / "sweep0", tmp_path / "sweep1"]))
        assert [len(one.finished) for one in sweep.configurations] == [4]


class TestCharts:
    def test_lines_bands_and_dots(self, tmp_path):
        sweep = Sweep(find([write_sweep(tmp_path)]))
        looks = charts.Looks.of(sweep)
        drawn = [*charts.curves(looks), *charts.by_step(looks), *charts.by_setting(sweep)]
        assert [chart.title for chart in drawn] == [
            "Validation AMI (max)",
            "Training loss",
            "Test AMI (max) by EM step",
            "Step sweep: test AMI (max) by trained T",
        ]
        for chart in drawn[:3]:
            assert {"line c0", "line c1"} <= set(re.findall(r'class="([^"]*)"', chart.svg))
            assert "var(--c0)" in chart.svg and "var(--c1)" in chart.svg
        ids = [name for chart in drawn for name in re.findall(r'\sid="([^"]*)"', chart.svg)]
        assert len(ids) == len(set(ids))

    def test_a_line_is_the_mean_and_its_band_the_range(self):
        ax = Figure().subplots()
        svg._draw_means(ax, svg.Line("", "--c0", seeds=[{1: 1, 2: 4}, {1: 3}]), "black")
        assert np.asarray(ax.lines[0].get_xydata()).tolist() == [[1, 2], [2, 4]]
        assert list(ax.collections[0].get_paths()[0].get_extents().extents) == [1, 1, 2, 4]

    def test_failed_runs_have_no_curves(self, tmp_path, monkeypatch):
        drawn = {}
        monkeypatch.setattr(charts, "draw", lambda name, lines, *_, **__: drawn.update({name: lines}) or "")
        charts.curves(charts.Looks.of(Sweep(find([write_sweep(tmp_path)]))))
        assert [len(line.seeds) for line in drawn["train/loss"]] == [3, 2]
        assert drawn["val/ami_max"][1].seeds[0] == {1: 0.10, 2: 0.105}

    def test_the_best_twelve_are_drawn(self, tmp_path):
        for i in range(14):
            write_run(tmp_path / str(i), model__num_steps=i + 1, ami=0.9 - i / 100)
        sweep = Sweep(find([tmp_path]))
        looks = charts.Looks.of(sweep)
        assert looks.drawn == sweep.configurations[:12]
        assert "12 of 14" in looks.note and "12 of 14" in page.render(sweep, "title")

    def test_a_search_is_dots(self, tmp_path):
        for i in range(4):
            write_run(tmp_path / str(i), model__num_steps=i + 2, ami=0.5 + i / 10, optimizer__lr=10.0**-i)
        steps, lr = charts.by_setting(Sweep(find([tmp_path])))
        assert "A dot is a run" in steps.caption and not lr.legend
        assert steps.svg.count('class="line ') == 4

    def test_a_line_for_each_combination_of_the_rest(self, tmp_path):
        for i in range(8):
            seed, num_steps, lr = i // 4, (2, 10)[i // 2 % 2], (0.1, 0.2)[i % 2]
            write_run(tmp_path / str(i), seed, 0.5 + i / 10, model__num_steps=num_steps, optimizer__lr=lr)
        steps, lr = charts.by_setting(Sweep(find([tmp_path])))
        assert [line.label for line in steps.legend] == ["lr=0.1", "lr=0.2"]
        assert steps.legend[0].seeds == [{2: 0.5, 10: 0.7}, {2: 0.9, 10: 1.1}]
        assert [line.label for line in lr.legend] == ["num_steps=2", "num_steps=10"]

    def test_one_run_without_anything(self, tmp_path):
        write_run(tmp_path / "run", ami=None)
        assert "Nothing but the seed" in page.render(Sweep(find([tmp_path])), "title")


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


def test_input_error_of_find(tmp_path):
    with pytest.raises(InputError, match="no run in it"):
        find([tmp_path])
