"""The data sets, as LightningDataModules."""

from nem_lightning.datamodules.binding import (
    BarsDataModule,
    CornersDataModule,
    MNISTShapeDataModule,
    MultiMNISTDataModule,
)
from nem_lightning.datamodules.files import FilesDataModule
from nem_lightning.datamodules.flying import FlyingShapesDataModule
from nem_lightning.datamodules.mnist import FlyingMNISTDataModule
from nem_lightning.datamodules.shapes import ShapesDataModule
from nem_lightning.datamodules.voc import VOCDataModule
from nem_lightning.datamodules.voc_features import VOCFeaturesDataModule
from nem_lightning.datamodules.voc_places import VOCPlacesDataModule

__all__ = [
    "BarsDataModule",
    "CornersDataModule",
    "FilesDataModule",
    "FlyingMNISTDataModule",
    "FlyingShapesDataModule",
    "MNISTShapeDataModule",
    "MultiMNISTDataModule",
    "ShapesDataModule",
    "VOCDataModule",
    "VOCFeaturesDataModule",
    "VOCPlacesDataModule",
]
