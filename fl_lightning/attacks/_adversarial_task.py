"""An adversarial task beside a client's local training: dirty batches, and steps of an optimizer of their own."""

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fl_lightning.data import Samples


def endless(samples: Samples, batch_size: int, generator: torch.Generator) -> Iterator[Samples]:
    """Batches without end: one fresh permutation after the other; the last batch of each may be smaller."""
    while True:
        for rows in torch.split(torch.randperm(len(samples), generator=generator), batch_size):
            yield samples[rows.to(samples.y.device)]


class AdversarialTask:
    """Gradients and steps on dirty batches, for one client's module.

    Args:
        module: the client in training.
        dirty: samples of the task.
        batch_size: dirty samples a step.
    """

    def __init__(self, module: LightningModule, dirty: Samples, batch_size: int):
        self.module = module
        self.parameters = list(module.parameters())
        self.batches = endless(dirty, batch_size, module.generators[0])  # type: ignore[index, arg-type]

    def vector(self) -> Tensor:
        """`[D]` a copy of the current parameters."""
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def loss(self) -> Tensor:
        """Mean loss of the next dirty batch."""
        batch = next(self.batches)
        with torch.enable_grad():
            loss: Tensor = self.module.training_step((batch.x, batch.y), 0)  # type: ignore[assignment]
        return loss

    def split(self, vector_D: Tensor) -> list[Tensor]:
        """A `[D]` vector in the shapes of the parameters."""
        parts = torch.split(vector_D, [p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def step(self, optimizer: torch.optim.Optimizer, extra_D: Tensor | float = 0.0) -> Tensor:
        """One step on the next dirty batch.

        Args:
            optimizer: of the adversarial task, over the module's parameters.
            extra_D: `[D]` added to the gradient.

        Returns:
            `[D]` the displacement.
        """
        before_D = self.vector()
        gradient_D = torch.cat([g.flatten() for g in torch.autograd.grad(self.loss(), self.parameters)])
        for parameter, part in zip(self.parameters, self.split(gradient_D + extra_D), strict=True):
            parameter.grad = part
        optimizer.step()
        optimizer.zero_grad()
        return self.vector() - before_D

    @torch.no_grad()
    def load_(self, vector_D: Tensor) -> None:
        """Set the module's parameters."""
        for parameter, part in zip(self.parameters, self.split(vector_D), strict=True):
            parameter.copy_(part)
