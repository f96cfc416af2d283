"""The data sets, as LightningDataModules."""

from nem_lightning.datamodules.flying import FlyingShapesDataModule
from nem_lightning.datamodules.shapes import ShapesDataModule
from nem_lightning.datamodules.voc import VOCDataModule

__all__ = ["FlyingShapesDataModule", "ShapesDataModule", "VOCDataModule"]
