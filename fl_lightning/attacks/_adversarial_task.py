"""An adversarial task beside a client's local training: dirty batches, and steps of an optimizer of their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fl_lightning.callbacks._contract import client_of, trained_parameters
from fl_lightning.data import Samples
from fl_lightning.models import BATCH_NORMS


def endless(samples: Samples, batch_size: int, generator: torch.Generator) -> Iterator[Samples]:
    """Batches without end: one fresh permutation after the other; the last batch of each may be smaller."""
    while True:
        for rows in torch.split(torch.randperm(len(samples), generator=generator), batch_size):
            yield samples[rows.to(samples.y.device)]


@contextmanager
def _resting(module: nn.Module) -> Iterator[None]:
    """Normalisation layers in eval mode, for the length of a with block."""
    layers = [part for part in module.modules() if isinstance(part, BATCH_NORMS) and part.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


class AdversarialTask:
    """Gradients and steps on dirty batches, for one client's module.

    Args:
        module: the client in training.
        dirty: samples of the task.
        batch_size: dirty samples a step.
        entries: length of vectors that are used beside the parameters; None: there are none.
    """

    def __init__(self, module: LightningModule, dirty: Samples, batch_size: int, entries: int | None = None):
        self.module = module
        self.client = client_of(module)
        # a module in a plain Trainer has its training step alone
        training_step: Any = lambda batch: module.training_step(batch, 0)  # noqa: E731
        self.batch_loss: Callable[[Any], Tensor] = getattr(self.client, "batch_loss", training_step)
        self.parameters = trained_parameters(module, entries)
        self.batches = endless(dirty, batch_size, self.client.generators[0])

    def vector(self) -> Tensor:
        """`[D]` a copy of the current parameters."""
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def loss(self) -> Tensor:
        """Mean loss of the next dirty batch."""
        batch = next(self.batches)
        with torch.enable_grad():
            try:
                loss: Tensor = self.batch_loss((batch.x, batch.y))
            except ValueError:  # what batch normalisation says to one sample: its running statistics will do
                if len(batch) > 1:
                    raise
                with _resting(self.module):
                    loss = self.batch_loss((batch.x, batch.y))
        return loss

    def clean_loss(self, batch: Any) -> Tensor:
        """Mean loss of a batch of the Trainer's."""
        parted = getattr(self.client, "parts_of", lambda batch: batch)(batch)
        loss: Tensor = self.batch_loss(parted)
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
        gradients = torch.autograd.grad(self.loss(), self.parameters, materialize_grads=True)
        gradient_D = torch.cat([gradient.flatten() for gradient in gradients])
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
