"""A LightningModule like one that a user may write, for tests."""

import torch

from nem_lightning.training.module import GroupingModule


class ModuleOfMyOwn(GroupingModule):
    """Divides the loss by a temperature that it learns."""

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) / self.temperature
