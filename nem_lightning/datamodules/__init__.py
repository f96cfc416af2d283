"""The data sets, as LightningDataModules."""

from nem_lightning.datamodules.shapes import ShapesDataModule
from nem_lightning.datamodules.voc import VOCDataModule

__all__ = ["ShapesDataModule", "VOCDataModule"]
