"""One client's local training as a LightningModule."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fl_lightning.clients._optimizers import Optimizer
from fl_lightning.data import Inputs
from fl_lightning.models import FlatNetwork, UserModule, draw_masks


class LocalTraining(LightningModule, ABC):
    """What one client and stacked clients have in common: how a local step is done.

    Args:
        optimizer: configuration of the local optimizer.
        generators: one a client: its own random numbers in this round (dropout, noise of callbacks).
        watched: whether callbacks look on. If none does, a step does not go through Lightning's hooks, which cost more than
            the arithmetic of a small model.
        factor: step -> factor on the learning rate; None: it stays the same.

    Attributes:
        n_stacked: number of clients in this module; callbacks that also serve stacked clients read it.
        generators: one generator a client.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        generators: list[torch.Generator],
        watched: bool,
        factor: Callable[[int], float] | None = None,
    ):
        super().__init__()
        self.optimizer_config = optimizer
        self.factor = factor
        self.steps_done = 0
        self.generators = generators
        self.n_stacked = len(generators)
        self.automatic_optimization = watched

    @abstractmethod
    def batch_loss(self, batch: Any) -> Tensor:
        """Mean loss of one batch, summed over the clients."""

    @abstractmethod
    def clip(self, limit: float) -> None:
        """Scale every client's gradient down to an L2 norm of at most `limit`."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One local step; its loss if Lightning is to do the rest."""
        loss = self.batch_loss(batch)
        if self.automatic_optimization:
            return loss
        optimizer = self.trainer.optimizers[0]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.on_before_optimizer_step(optimizer)
        optimizer.step()
        return None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale long gradients down; the learning rate is that of the step."""
        if self.factor:
            for group in optimizer.param_groups:
                group["lr"] = self.optimizer_config.lr * self.factor(self.steps_done)
            self.steps_done += 1
        if limit := self.optimizer_config.max_grad_norm:
            self.clip(limit)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The local optimizer over all parameters."""
        return self.optimizer_config.build(self.parameters())


class UserClient(NamedTuple):
    """What callbacks that do more than look on need beside a user's own module; its attribute `fl_client` during a fit.

    Attributes:
        network: the module as the server sees it.
        loss: of the federation, a sample's.
        generators: the client's own random numbers in this round, as one list.
    """

    network: UserModule
    loss: Callable[[Tensor, Tensor], Tensor]
    generators: list[torch.Generator]

    def __call__(self, x: Inputs) -> Tensor:
        """`[B, K]` scores."""
        scores: Tensor = self.network(x)
        return scores

    def batch_loss(self, batch: tuple[Inputs, Tensor]) -> Tensor:
        """Mean loss of a batch of inputs and targets, by `forward` and the federation's loss."""
        return self.loss(self(batch[0]), batch[1]).mean()

    def parts_of(self, batch: Any) -> tuple[Inputs, Tensor]:
        """Inputs and targets of a batch as the module's training step gets it."""
        return self.network.parts_of(batch)


class ClientModule(LocalTraining):
    """One client's local training as a LightningModule.

    Args:
        flat: architecture and loss; the network is trained in place.
        optimizer: configuration of the local optimizer.
        generator: the client's own random numbers in this round.
        watched: see `LocalTraining`.
        factor: see `LocalTraining`.
    """

    def __init__(
        self,
        flat: FlatNetwork,
        optimizer: Optimizer,
        generator: torch.Generator,
        watched: bool = True,
        factor: Callable[[int], float] | None = None,
    ):
        super().__init__(optimizer, [generator], watched, factor)
        self.network = flat.network
        self.loss = flat.sample_loss

    def forward(self, x: Inputs) -> Tensor:
        """`[B, ...]` inputs to `[B, K]` scores."""
        scores: Tensor = self.network(x)
        return scores

    def batch_loss(self, batch: tuple[Inputs, Tensor]) -> Tensor:
        """Mean loss of one batch."""
        x, y = batch
        draw_masks(self.network, len(y), self.generators[0])
        return self.loss(self(x), y).mean()

    def clip(self, limit: float) -> None:
        """Scale the gradient down."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
