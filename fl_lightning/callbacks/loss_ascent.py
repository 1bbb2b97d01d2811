"""Climb the loss instead of descending it.

References:
    Shejwalkar, Houmansadr, Kairouz, Ramage, "Back to the Drawing Board: A Critical Evaluation of Poisoning Attacks on Production
    Federated Learning", IEEE S&P 2022, section V-C (PGA: projected gradient ascent).
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from fl_lightning.callbacks._contract import n_stacked


class LossAscent(Callback):
    """Turns every gradient round; a client whose parameters would leave the real numbers stops at the last finite point.

    Attributes:
        metrics: `stopped`, the share of clients that stopped early; after the fit.
    """

    stackable = True

    def __init__(self) -> None:
        self.last: list[Tensor] = []
        self.alive = torch.ones(0, dtype=torch.bool)
        self.metrics: dict[str, float] = {}

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All clients are at a finite point."""
        self.last = [p.detach().clone() for p in pl_module.parameters()]
        self.alive = torch.ones(n_stacked(pl_module), dtype=torch.bool, device=self.last[0].device)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Up instead of down."""
        for part in pl_module.parameters():
            if part.grad is not None:
                part.grad.neg_()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put clients back that are no longer finite, for good."""
        rows = len(self.alive)
        parts = list(pl_module.parameters())
        for part in parts:
            self.alive &= part.reshape(rows, -1).isfinite().all(1)
        for part, last in zip(parts, self.last, strict=True):
            alive = self.alive.view(-1, *[1] * (part.ndim - 1)) if rows > 1 else self.alive[0]
            part.copy_(torch.where(alive, part, last))
            last.copy_(part)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report how many stopped."""
        self.metrics = {"stopped": 1 - float(self.alive.double().mean())}
