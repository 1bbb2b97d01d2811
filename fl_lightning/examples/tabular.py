"""A table classifier with batch normalisation and dropout."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class TabularClassifier(LightningModule):
    """Two dense layers with batch normalisation and dropout, trained by Adam under a learning rate that decays each epoch.

    Args:
        features: numbers in a row, after flattening.
        classes: number of classes.
        width: of the hidden layer.
        dropout: probability.
        lr: learning rate of the first epoch.
    """

    def __init__(self, features: int, classes: int, width: int = 32, dropout: float = 0.1, lr: float = 1e-2):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(features, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ...]` to `[B, classes]`."""
        scores: Tensor = self.net(x)
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy with label smoothing."""
        x, y = batch
        loss = F.cross_entropy(self(x), y, label_smoothing=0.05)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        """Adam, and a scheduler that Lightning steps after every epoch."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
