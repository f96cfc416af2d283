"""MNIST from its two gzipped IDX files of images, and flying MNIST: sequences of digits that fly."""

import gzip
import hashlib
import logging
import zlib
from pathlib import Path

import numpy as np
import torch

from nem_lightning.datamodules.flying import FlyingDataModule, Templates
from nem_lightning.errors import InputError, require, require_flag

log = logging.getLogger(__name__)

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
IMAGES = {
    "train-images-idx3-ubyte.gz": (
        60_000,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "t10k-images-idx3-ubyte.gz": (
        10_000,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
}
"""For each file of images: the number of images, the SHA-256 of the fetched file, and the SHA-256 of its uncompressed
content, which does not depend on the compression."""
HEADER = 16
"""Bytes before the pixels of a file of images."""


def read_images(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of MNIST's images: (N, 28, 28) uint8.

    Raises:
        InputError: no such file, not gzipped, cut short, or not MNIST's.
    """
    count, _, digest = IMAGES[path.name]
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; set data.mnist_dir to the folder of MNIST's files, or data.download=true"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is cut short or damaged ({error}); fetch it anew") from error
    require(
        hashlib.sha256(data).hexdigest() == digest, f"{path}: is not the file of MNIST (another hash); fetch it anew"
    )
    return np.frombuffer(data, np.uint8, offset=HEADER).reshape(count, 28, 28)


def fetch(folder: Path) -> None:
    """Fetch the files of images that are not in a folder yet.

    Raises:
        InputError: a file cannot be fetched.
    """
    import pooch

    for name, (_, digest, _) in IMAGES.items():
        if not (folder / name).exists():
            try:
                pooch.retrieve(URL + name, known_hash=digest, path=folder, fname=name, progressbar=True)
            except (OSError, ValueError) as error:
                raise InputError(f"data.download: {URL + name} could not be fetched into {folder} ({error})") from error


def prepare(folder: Path, download: bool) -> None:
    """Fetch the files of images into a folder if asked to, and check them.

    Raises:
        InputError: a file cannot be fetched, is missing or damaged.
    """
    if download:
        fetch(folder)
    for name in IMAGES:
        read_images(folder / name)


def read_split(folder: Path, stage: str) -> np.ndarray:
    """Read the digits of a stage, (N, 28, 28) uint8: of "train" MNIST's first 50,000 training digits, of "val" its last
    10,000, of "test" its 10,000 test digits.

    Raises:
        InputError: as :func:`read_images`.
    """
    train, test = IMAGES
    if stage == "test":
        return read_images(folder / test)
    digits = read_images(folder / train)
    kept = len(digits) * 5 // 6
    return digits[:kept] if stage == "train" else digits[kept:]


class FlyingMNISTDataModule(FlyingDataModule):
    """Flying MNIST: grey 24 x 24 sequences of 1 to 3 digits, each down-sampled to 14 x 14.

    A pixel of a digit is the mean of four of MNIST's; the digit covers the pixels of at least one half. With 20 or 500
    digits, all sequences draw from the first training digits; with all digits, training, validation and test sequences
    draw from MNIST's first 50,000 training digits, its last 10,000, and its 10,000 test digits.

    A published file in ``data_dir`` is read instead of generating, if ``generation_seed`` is 0: such as
    ``flying_mnist_hard_2digits.h5`` of all digits, or ``flying_mnist_medium20_3digits.h5`` of 20.

    Args:
        data_dir: the folder that a published file may be in.
        mnist_dir: the folder of MNIST's gzipped IDX files.
        num_objects: digits in each sequence, 1 to 3.
        num_digits_used: 20, 500 or "all": how many of MNIST's training digits are drawn from.
        num_frames: F, at least 2; T steps need T + 1.
        max_speed: pixels a frame, along rows and along columns, at least 0.
        download: whether to fetch MNIST's files if they are not there.
        batch_size: sequences in a batch, at least 1.
        generation_seed: seed of the generated sequences; each seed gives another set.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range, MNIST's files missing or damaged, or a published file
            that cannot be used.
    """

    binary = False

    def __init__(
        self,
        data_dir: str,
        mnist_dir: str,
        num_objects: int = 2,
        num_digits_used: int | str = 500,
        num_frames: int = 21,
        max_speed: float = 1.0,
        download: bool = False,
        batch_size: int = 64,
        generation_seed: int = 0,
        seed: int = 0,
    ) -> None:
        require_flag("download", download)
        require(num_digits_used in (20, 500, "all"), f"num_digits_used={num_digits_used}: must be 20, 500 or all")
        self.num_digits_used = num_digits_used
        super().__init__(data_dir, 24, num_objects, num_frames, max_speed, batch_size, generation_seed, seed)
        require(num_objects <= 3, f"num_objects={num_objects}: must be 1 to 3 digits")
        self.mnist_dir = Path(mnist_dir).expanduser()
        self.download = download

    def published_name(self) -> str | None:
        if self.generation_seed != 0:
            return None
        kind = "hard" if self.num_digits_used == "all" else f"medium{self.num_digits_used}"
        return f"flying_mnist_{kind}_{self.num_objects}digits.h5"

    def prepare_data(self) -> None:
        """Fetch MNIST if asked to, and check its files."""
        if self.path is None:
            prepare(self.mnist_dir, self.download)

    def templates(self, stage: str) -> Templates:
        if self.num_digits_used == "all":
            digits = read_split(self.mnist_dir, stage)
        else:
            digits = read_images(self.mnist_dir / next(iter(IMAGES)))[: self.num_digits_used]
        quarters = digits.reshape(-1, 14, 2, 14, 2).astype(np.uint16).sum((2, 4))
        pixels = torch.from_numpy(((quarters + 2) // 4).astype(np.uint8))
        return Templates(pixels, np.full((len(pixels), 2), 14), scale=255)
