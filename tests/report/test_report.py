"""The report: what it reads, counts, draws and writes."""

import html
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
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


def test_input_error_of_find(tmp_path):
    with pytest.raises(InputError, match="no run in it"):
        find([tmp_path])
