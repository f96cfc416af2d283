"""Plots of the growth of a training step's time and memory."""

from pathlib import Path

from matplotlib.figure import Figure

LABELS = {
    "steps": "EM steps T",
    "components": "components K",
    "batch": "images in a batch",
    "size": "side of an image",
}


def save(growth: dict[str, list[dict[str, float]]], folder: Path) -> None:
    """Write ``growth.png``: time above, memory below, one column for each number that grows."""
    figure = Figure(figsize=(3.4 * len(growth), 6), layout="constrained")
    axes = figure.subplots(2, len(growth), squeeze=False, sharex="col")
    for column, (name, rows) in enumerate(growth.items()):
        values = [row["value"] for row in rows]
        time, memory = axes[:, column]
        for series, style in (("plain loop", "s--"), ("ours", "o-"), ("products", "k:")):
            time.plot(values, [row[series] for row in rows], style, label=series, markersize=4)
        memory.plot(values, [row["memory"] for row in rows], "o-", markersize=4)
        memory.set_xlabel(LABELS[name])
        for axis in (time, memory):
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("training step (ms)")
    axes[1, 0].set_ylabel("peak memory (MiB)")
    axes[0, 0].legend()
    figure.suptitle("RNN-EM, all else as by default")
    figure.savefig(folder / "growth.png", dpi=110)
