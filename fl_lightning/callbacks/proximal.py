"""Pull the local model towards a reference: FedProx for benign clients, a stealth term for attackers.

References:
    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (the squared pull, eq. 2).
    Zhou, Xu, Wu, Zheng, "Deep Model Poisoning Attack on Federated Learning", Future Internet 13(3), 2021, eq. 2 (the unsquared
    pull towards the estimated benign update).
"""

from typing import ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_lightning.callbacks._contract import n_stacked, trained_parameters


class ProximalPull(Callback):
    r"""Adds the gradient of a distance to the reference model to every local step.

    squared:   $\frac{\rho}{2} \lVert w - w_{ref} \rVert^2$, gradient $\rho (w - w_{ref})$
    otherwise: $\rho \lVert w - w_{ref} \rVert$, gradient $\rho (w - w_{ref}) / \lVert w - w_{ref} \rVert$ (0 at the reference)

    Args:
        rho: strength, at least 0.
        squared: which of the two.
        offset: `[D]` what to add to the model at the start of the fit to get the reference; None: the start itself.
    """

    cites: ClassVar[tuple[str, ...]] = ("li2020federated", "zhou2021deep")
    """Keys of the papers in `references.bib`."""
    stackable = True

    def __init__(self, rho: float, squared: bool = True, offset: Tensor | None = None):
        if rho < 0:
            raise ValueError(f"rho must be at least 0, got {rho}")
        self.rho = rho
        self.squared = squared
        self.offset = offset
        self.parts: list[nn.Parameter] = []
        self.reference: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the reference."""
        self.parts = trained_parameters(pl_module, None if self.offset is None else len(self.offset))
        self.reference = [p.detach().clone() for p in self.parts]
        if self.offset is not None:
            start = 0
            rows = n_stacked(pl_module)
            for part in self.reference:
                size = part.numel() // rows
                part += self.offset[start : start + size].to(part).view(part.shape if rows == 1 else part.shape[1:])
                start += size

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the pull to the gradients."""
        rows = n_stacked(pl_module)
        pairs = zip(self.parts, self.reference, strict=True)
        moving = [(p, p - reference) for p, reference in pairs if p.grad is not None]
        parameters, away = [p for p, _ in moving], [distance for _, distance in moving]
        if not self.squared:
            square = torch.stack([d.reshape(rows, -1).square().sum(1) for d in away]).sum(0)
            scale = torch.where(square > 0, square.rsqrt(), 0.0)
            away = [d * scale.view(-1, *[1] * (d.ndim - 1)) if rows > 1 else d * scale for d in away]
        for parameter, pull in zip(parameters, away, strict=True):
            parameter.grad.add_(pull, alpha=self.rho)  # type: ignore[union-attr]
