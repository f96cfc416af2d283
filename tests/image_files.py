"""Small folders of image files."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny import few_shapes


def make_images(folder: Path) -> Path:
    """Write images with masks as files in a folder, and the images as an array in a file beside the folder."""
    folder.mkdir()
    frames = few_shapes(20)
    images, groups = frames.frames[:, 0, 0].numpy(), frames.groups[:, 0].numpy()
    for index, (image, labels) in enumerate(zip(images, groups, strict=True)):
        Image.fromarray(image * np.uint8(255)).save(folder / f"{index}.png")
        Image.fromarray(labels).save(folder / f"{index}_mask.png")
    np.save(folder.with_suffix(".npy"), images)
    return folder
