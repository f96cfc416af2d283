"""Tables and figures, from the scores in ``results/rows/`` alone."""

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nem_lightning.errors import require
from nem_lightning.files import atomic_file
from reproduce import plots
from reproduce.evaluation import read
from reproduce.page import STAGES, Rows, command, markdown, mean_and_deviation, score, stops
from reproduce.rows import ROWS
from reproduce.scoring import SCORES, SUBSETS
from reproduce.training import different


def read_rows(results: Path) -> Rows:
    """The scores of each row, a seed each, in the order of the table.

    Raises:
        InputError: there are none, one cannot be read, or the seeds of a row were trained with different settings.
    """
    paths = sorted((results / "rows").glob("*.json"))
    require(bool(paths), f"{results / 'rows'}: no scores in it; python -m reproduce writes them")
    found: Rows = defaultdict(list)
    for path in paths:
        scores = read(path)
        found[scores["row"]].append(scores)
    for name, rows in found.items():
        rows.sort(key=lambda scores: scores["seed"])
        for scores in rows[1:]:
            others = different(rows[0].get("settings") or {}, scores.get("settings") or {})
            require(
                not others,
                f"{results / 'rows'}: {name}: seeds {rows[0]['seed']} and {scores['seed']} were trained with different "
                f"settings ({', '.join(others[:3])}); delete the older and train it again",
            )
    return {name: found[name] for name in (*ROWS, *sorted(found.keys() - ROWS.keys())) if name in found}


def write(results: Path) -> dict[str, Path]:
    """Write all tables and figures for which there are scores.

    Returns:
        What each is, and its path.
    """
    rows = read_rows(results)
    places = {"table": results / "table.md", "table as CSV": results / "table.csv"}
    with atomic_file(places["table"]) as file:
        file.write_text(markdown(rows))
    write_csv(places["table as CSV"], csv_rows(rows))
    parts: dict[str, tuple[Callable, Callable]] = {
        "em_steps": (em_steps, plots.em_steps),
        "other_k": (other_k, plots.other_k),
        "convergence": (convergence, plots.convergence),
    }
    for name, (collect, draw) in parts.items():
        lines = collect(rows)
        if lines:
            write_csv(results / f"{name}.csv", lines)
            places[f"{name}.csv"], places[f"{name}.png"] = results / f"{name}.csv", results / f"{name}.png"
            with atomic_file(places[f"{name}.png"]) as file:
                draw(lines, baseline(rows)).savefig(file, format="png", dpi=130)
    return places


def baseline(rows: Rows) -> float | None:
    """AMI (max) of k-means on the test images."""
    return mean_and_deviation(score(row, "test", "all", "ami_max") for row in rows.get("kmeans", []))[0]


def csv_rows(rows: Rows) -> list[dict]:
    """``table.csv``: a line for each row, split and subset."""
    lines = []
    for name, found in rows.items():
        how = {
            "epochs_mean": mean_and_deviation(row.get("epochs") for row in found)[0],
            "epochs_std": mean_and_deviation(row.get("epochs") for row in found)[1],
            "planned_epochs": found[0].get("planned_epochs"),
            "stop": stops(found).replace("*", ""),
            "seconds_mean": mean_and_deviation(row.get("seconds") for row in found)[0],
            "command": command(found).replace("`", ""),
        }
        for stage, stage_title in STAGES.items():
            for subset in SUBSETS:
                images = found[0]["scores"][stage][subset]["images"]
                values = over_seeds([row["scores"][stage][subset] for row in found])
                lines.append({"row": name, "split": stage_title, "subset": subset, "images": images, **values, **how})
    return lines


def over_seeds(found: Sequence[Mapping]) -> dict[str, float | int | None]:
    """``seeds``, and mean and deviation of each score."""
    values: dict[str, float | int | None] = {"seeds": len(found)}
    for name in SCORES:
        values[f"{name}_mean"], values[f"{name}_std"] = mean_and_deviation(of[name] for of in found)
    return values


def em_steps(rows: Rows) -> list[dict]:
    """A line for each row and T: trained once and evaluated at every T, or trained at that T."""
    lines = []
    for name, found in rows.items():
        with_steps = [row for row in found if "by_step" in row]
        for step in range(min((len(row["by_step"]) for row in with_steps), default=0)):
            values = over_seeds([row["by_step"][step] for row in with_steps])
            trained = with_steps[0]["num_steps"]
            lines.append(
                {"row": name, "title": found[0]["title"], "trained_steps": trained, "steps": step + 1, **values}
            )
    own = {row["num_steps"] for row in rows.get("recipe", [])}
    at = [found for name, found in rows.items() if name.startswith("recipe_T") and found[0]["num_steps"] not in own]
    if at and "recipe" in rows:
        at.append(rows["recipe"])
    for found in sorted(at, key=lambda found: found[0]["num_steps"]):
        steps = found[0]["num_steps"]
        values = over_seeds([row["scores"]["test"]["all"] for row in found])
        lines.append({"row": "recipe_T", "title": "our recipe, trained at T", "trained_steps": steps, "steps": steps})
        lines[-1] |= values
    return lines


def other_k(rows: Rows) -> list[dict]:
    """A line for each row, number of objects and K."""
    lines = []
    for name, found in rows.items():
        cases = defaultdict(list)
        for row in found:
            for case in row.get("other_k", []):
                cases[case["objects"], case["num_components"]].append(case)
        for (objects, k), of_seeds in sorted(cases.items()):
            head = {"row": name, "title": found[0]["title"], "objects": objects, "num_components": k}
            lines.append({**head, "images": of_seeds[0]["images"], **over_seeds(of_seeds)})
    return lines


def convergence(rows: Rows) -> list[dict]:
    """A line for each row, variant and step; ``fell``: the share of images whose log likelihood fell in this step."""
    lines = []
    for name, found in rows.items():
        variants = defaultdict(list)
        for row in found:
            for curve in row.get("convergence", []):
                variants[curve["title"]].append(curve)
        for variant, curves in variants.items():
            for step in range(len(curves[0]["q"])):
                values = {"seeds": len(curves)}
                for what in ("log_likelihood", "q"):
                    of_step = mean_and_deviation(curve[what][step] for curve in curves)
                    values[f"{what}_mean"], values[f"{what}_std"] = of_step
                values["fell"] = mean_and_deviation(curve["fell"][step - 1] if step else None for curve in curves)[0]
                head = {"row": name, "title": found[0]["title"], "variant": variant, "images": curves[0]["images"]}
                lines.append({**head, "step": step + 1, **values})
    return lines


def write_csv(path: Path, lines: Sequence[Mapping]) -> None:
    with atomic_file(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
