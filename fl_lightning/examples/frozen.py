"""A frozen torchvision backbone with a trained head."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class FrozenBackbone(LightningModule):
    """ResNet-18 whose weights stay, and a dense head that is trained: the head is all that clients send.

    Args:
        classes: number of classes.
        weights: a file with the backbone's state dictionary, read without pickle's code; None: random weights.
        lr: learning rate.
    """

    def __init__(self, classes: int, weights: str | None = None, lr: float = 0.05):
        super().__init__()
        from torchvision.models import resnet18

        self.lr = lr
        self.backbone = resnet18(weights=None)
        if weights is not None:
            self.backbone.load_state_dict(torch.load(weights, weights_only=True))
        self.backbone.fc = nn.Identity()
        self.backbone.requires_grad_(False)
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 1 or 3, H, W]` to `[B, classes]`."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        scores: Tensor = self.head(self.backbone(x))
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Stochastic gradient descent on the head."""
        return torch.optim.SGD(self.head.parameters(), lr=self.lr)
