"""A small vision transformer."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class SmallViT(LightningModule):
    """Patches, learnt positions, a transformer encoder, the mean over patches, a dense layer.

    Args:
        classes: number of classes.
        channels: of the images.
        size: height and width of the images.
        patch: height and width of a patch.
        width: of the tokens.
        depth: layers.
        dropout: probability.
        lr: learning rate.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 1,
        size: int = 8,
        patch: int = 4,
        width: int = 16,
        depth: int = 1,
        dropout: float = 0.0,
        lr: float = 3e-3,
    ):
        super().__init__()
        self.lr = lr
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, size, size]` to `[B, classes]`."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        scores: Tensor = self.head(self.encoder(tokens).mean(1))
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
