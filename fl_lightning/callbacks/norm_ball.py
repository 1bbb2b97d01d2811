"""Keep the local model within a ball around where its training starts: projected gradient descent.

References:
    Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, section 3 (PGD attack).
"""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fl_lightning.callbacks._contract import n_stacked


class NormBall(Callback):
    r"""Projects the model onto $\lVert w - w_0 \rVert \le r$ after every so many local steps, and after the last.

    l2: $w = w_0 + (w - w_0) \min(1, r / \lVert w - w_0 \rVert)$ over all parameters of a client together; linf: each coordinate
    of $w - w_0$ cut to $[-r, r]$.

    Args:
        radius: r, above 0.
        norm: which of the two.
        every: local steps between projections, at least 1.
    """

    stackable = True

    def __init__(self, radius: float, norm: Literal["l2", "linf"] = "l2", every: int = 1):
        if radius <= 0 or every < 1:
            raise ValueError(f"needs a radius above 0 and at least one step in between, got {radius} and {every}")
        self.radius = radius
        self.norm = norm
        self.every = every
        self.start: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the centre."""
        self.start = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Project when it is time."""
        if (batch_idx + 1) % self.every == 0:
            self.project(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project what is sent, also where a client stopped between two projections."""
        self.project(pl_module)

    @torch.no_grad()
    def project(self, pl_module: LightningModule) -> None:
        """Move every client's parameters back into its ball; parameters inside keep their bits."""
        rows = n_stacked(pl_module)
        pairs = list(zip(pl_module.parameters(), self.start, strict=True))
        if self.norm == "linf":
            for part, centre in pairs:
                part.copy_(torch.maximum(torch.minimum(part, centre + self.radius), centre - self.radius))
            return
        away = [(part - centre).reshape(rows, -1) for part, centre in pairs]
        norms = torch.stack([delta.double().square().sum(1) for delta in away]).sum(0).sqrt()
        if not bool((norms > self.radius).any()):
            return
        scales = torch.where(norms > self.radius, self.radius / norms, 1.0)
        for (part, centre), delta in zip(pairs, away, strict=True):
            inside = (scales == 1).to(part.device).view(-1, *[1] * (part.ndim - 1)) if rows > 1 else scales[0] == 1
            scaled = (delta * scales.to(delta)[:, None]).view(part.shape)
            part.copy_(torch.where(inside, part, centre + scaled))
