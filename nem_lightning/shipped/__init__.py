"""Trained models that come with the package, by name: ``ckpt_path=shapes``, ``load("shapes")``.

They are copies of those in ``results/checkpoints/`` of the repository, where their scores are, too.
"""

from pathlib import Path

MODELS = {
    "shapes": "RNN-EM on Shapes, 28 x 28 pixels, black and white, K=3: AMI 0.968",
    "shapes_nem": "N-EM on the same: AMI 0.942",
}
"""By name, what each one is."""


def path_of(name: str | Path) -> Path:
    """Give the checkpoint of a name; a path of a file stays as it is."""
    return Path(__file__).with_name(f"{name}.ckpt") if str(name) in MODELS and not Path(name).is_file() else Path(name)
