"""Measure the speed: a table, ``speed.json`` and plots.

    python -m benchmarks.speed                  # in outputs/benchmark/, minutes
    python -m benchmarks.speed --device cuda
    python -m benchmarks.speed --quick          # every part once, in seconds; does not measure the speed

All functions that are compared take turns in one process; examples a second are medians. *Products* are the matmuls
alone, with one weight-gradient matmul for all steps: they are the floor. *Of floor* is a speed divided by the floor's.
"""

import argparse
import json
import logging
import platform
import statistics
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import around, parts, plots, sequences, steps, threads, timing
from benchmarks.steps import Case

GROWTH = {
    "steps": [1, 2, 5, 10, 20],
    "components": [1, 2, 3, 5, 8],
    "batch": [16, 32, 64, 128, 256],
    "size": [14, 20, 28, 40, 56],
}
QUICK_GROWTH = {"steps": [1, 2]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=15, help="how often everything is timed")
    parser.add_argument("--no-compile", action="store_true", help="leave out what needs a C++ compiler")
    parser.add_argument("--quick", action="store_true", help="every part once")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="folder of speed.json and plots")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: PyTorch finds no GPU with CUDA here")
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    result = measure(
        torch.device(arguments.device),
        1 if arguments.quick else arguments.rounds,
        arguments.quick,
        not (arguments.no_compile or arguments.quick),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    plots.save(result["growth"], arguments.out)
    show(result, Console())
    print(f"{arguments.out}/: speed.json, growth.png")


def measure(device: torch.device, rounds: int, quick: bool, compiled: bool) -> dict:
    """Measure everything, and give plain numbers."""
    base = Case(batch=4, components=2, steps=2, size=12) if quick else Case()
    cases = [replace(base, model=model) for model in ("rnn_em", "nem")]
    images = 64 if quick else 640
    result = {"machine": machine(device), "case": asdict(base), "rounds": rounds}
    result["training"] = {case.model: steps.measure(case, device, rounds, True, compiled) for case in cases}
    result["evaluation"] = {case.model: steps.measure(case, device, rounds, False, compiled) for case in cases}
    result["growth"] = {
        name: [growth(replace(base, **{name: value}), value, device, max(1, rounds // 3)) for value in values]
        for name, values in (QUICK_GROWTH if quick else GROWTH).items()
    }
    if device.type == "cpu":
        result["parts"] = {case.model: parts.of_a_training_step(case, device, rounds) for case in cases}
        turns, seconds = (1, 0.1) if quick else (max(1, rounds // 3), 3)
        result["beside"] = threads.beside_a_busy_process(base, turns, seconds)
    result["sequences"] = sequences.measure(base, device, max(1, rounds // 3))
    result["doubling"] = sequences.doubling(base, device, rounds)
    result["scores"] = around.scores(device, images, max(1, rounds // 5))
    result["lightning"] = around.lightning(base, device, max(1, rounds // 2), 5 if quick else 60)
    result["test_seconds"] = around.evaluation(base, device, 64 if quick else 10_000)
    result["start_up"] = around.start_up(device, 1 if quick else 3, score=not quick)
    return result


def growth(case: Case, value: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Measure training of a case in which one number is ``value``: milliseconds a step, and peak memory in MiB.

    The milliseconds are also given for the plain loop and for the floor.
    """
    found = steps.functions(case, device, training=True, compiled=False)
    times = timing.in_turns({name: found[name] for name in ("ours", "plain loop", "products")}, rounds, device)
    ms = {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    return {"value": value, **ms, "memory": steps.peak_memory(case, device, torch.get_num_threads())}


def machine(device: torch.device) -> dict[str, str | int]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(result: dict, console: Console) -> None:
    case, where = result["case"], result["machine"]
    console.print(f"{where['device']}, {where['threads']} threads, torch {where['torch']}", highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in case.items() if name != "model"), highlight=False)
    for kind in ("training", "evaluation"):
        title = f"{kind.capitalize()}, examples a second"
        table = Table("", title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for model in result[kind]:
            table.add_column(model, justify="right")
            table.add_column("of floor", justify="right")
        for name in result[kind]["rnn_em"]:
            found = [result[kind][model][name] for model in result[kind]]
            table.add_row(name, *(f(of) for of in found for f in (_per_second, _of_floor)))
        console.print(table)
    for model, found in result.get("parts", {}).items():
        said = ", ".join(f"{name} {ms:.1f}" for name, ms in found.items())
        console.print(f"Training step of {model}, ms: {said}", highlight=False)
    for name, found in result.get("beside", {}).items():
        setting = "as PyTorch comes" if name == "default" else ", ".join(f"{k}={v}" for k, v in threads.SETTING.items())
        console.print(
            f"Training step of rnn_em, {setting}: {found['alone']:.0f} examples a second alone, "
            f"{found['busy']:.0f} beside a busy process",
            highlight=False,
        )
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in result["sequences"].items())
    console.print(f"Examples a second of sequences and stills: {rates}", highlight=False)
    decoders = ", ".join(f"{name} {ms:.0f} ms" for name, ms in result["doubling"].items())
    console.print(f"Convolutional decoder, {case['batch']} x {case['components']} images: {decoders}", highlight=False)
    step = result["lightning"]
    scores, start = result["scores"], result["start_up"]
    console.print(
        f"Trainer.fit: {step['fit']:.1f} ms a step, bare loop {step['bare']:.1f} ms: {step['ratio'] - 1:+.1%}\n"
        f"AMI: {scores['ours']:.0f} images a second, {scores['ratio']:.0f} times scikit-learn's; "
        f"they differ by {scores['difference']:.0e}\n"
        f"Trainer.test, all scores of all steps: {result['test_seconds']:.1f} s\n"
        f"train.py: --help {start['help']:.1f} s, first training step {start['first step']:.1f} s",
        highlight=False,
    )
    if "score" in start:
        console.print(
            f"train.py: validation AMI {around.SCORE} after {start['score']:.1f} s",
            highlight=False,
        )


def _per_second(found: dict[str, float]) -> str:
    return f"{found['per_second']:.0f}"


def _of_floor(found: dict[str, float]) -> str:
    return f"{found['of_products']:.2f}"


if __name__ == "__main__":
    main()
