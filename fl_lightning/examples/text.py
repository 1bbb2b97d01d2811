"""A text classifier: tokens of different lengths, padded with 0, through an LSTM."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class TextClassifier(LightningModule):
    """Embedding, LSTM, the mean of its states over the tokens that are there, a dense layer.

    Args:
        vocabulary: number of tokens, 0 among them for padding.
        classes: number of classes.
        width: of embedding and states.
        lr: learning rate.
    """

    def __init__(self, vocabulary: int, classes: int, width: int = 16, lr: float = 1e-2):
        super().__init__()
        self.lr = lr
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """`[B, L]` int64 tokens to `[B, classes]`."""
        present = (ids != 0).unsqueeze(-1)
        states, _ = self.lstm(self.embedding(ids))
        mean = (states * present).sum(1) / present.sum(1).clamp(min=1)
        scores: Tensor = self.head(mean)
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        ids, y = batch
        loss = F.cross_entropy(self(ids), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)
