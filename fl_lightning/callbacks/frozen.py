"""Keep some coordinates of the model where local training starts.

References:
    Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, algorithm 1: gradients are projected onto the
    coordinates that benign clients leave alone.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fl_lightning.callbacks._contract import n_stacked, trained_parameters


class Frozen(Callback):
    """Puts coordinates back to their start after every local step.

    The parameters are put back, not the gradients: weight decay, momentum and Adam move coordinates whose gradient is 0.

    Args:
        free_D: `[D]` bool, one entry a parameter in the order of the module; False: keeps its start value.
    """

    stackable = True

    def __init__(self, free_D: Tensor):
        if free_D.dtype != torch.bool or free_D.ndim != 1:
            raise ValueError(f"needs one vector of booleans, got {free_D.dtype} of shape {list(free_D.shape)}")
        self.free_D = free_D
        self.parts: list[nn.Parameter] = []
        self.start: list[Tensor] = []
        self.free: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the start, and cut the mask into the module's parameters."""
        self.parts = trained_parameters(pl_module, len(self.free_D))
        self.start = [p.detach().clone() for p in self.parts]
        rows = n_stacked(pl_module)
        entries = sum(part.numel() for part in self.start) // rows
        if entries > len(self.free_D):
            raise ValueError(f"the mask has {len(self.free_D)} entries, the model {entries} parameters")
        self.free, begin = [], 0
        for part in self.start:
            size = part.numel() // rows
            mask = self.free_D[begin : begin + size].to(part.device)
            self.free.append(mask.view(part.shape if rows == 1 else part.shape[1:]))
            begin += size

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the frozen coordinates back."""
        for part, start, free in zip(self.parts, self.start, self.free, strict=True):
            part.copy_(torch.where(free, part, start))
