"""One client: how it trains (`Client`) and the LightningModules that do it (`LocalTraining`, `ClientModule`)."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from torch import Tensor

from fl_lightning.callbacks import CALLBACKS
from fl_lightning.flat import FlatNetwork
from fl_lightning.losses import LOSSES
from fl_lightning.models import draw_masks
from fl_lightning.registry import Component, ConfigError, Registry, Slot, component, suggest

__all__ = ["Adam", "CallbackConfig", "Client", "ClientModule", "LocalTraining", "Optimizer", "Sgd", "batch_plan"]


@component
class Optimizer(Component, ABC):
    """The local optimizer; a fresh one is made for every client and round.

    Attributes:
        elementwise: every parameter moves by its own gradient only, so that one optimizer serves stacked clients.
        lr: learning rate in round 0.
        decay: factor on the learning rate after every communication round.
        max_grad_norm: a client's gradient is scaled down to this L2 norm in every local step; None: never.
    """

    elementwise: ClassVar[bool] = True

    lr: float = Field(gt=0)
    decay: float = Field(default=1.0, gt=0, le=1)
    max_grad_norm: float | None = Field(default=None, gt=0)

    def at(self, round: int) -> "Optimizer":
        """The optimizer with the learning rate of a communication round (from 0)."""
        return self if self.decay == 1 else replace(self, lr=self.lr * self.decay**round)

    @property
    def plain(self) -> bool:
        """Whether a step is theta - lr * gradient and nothing else."""
        return False

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimizer over these parameters."""


@component
class Sgd(Optimizer):
    """Stochastic gradient descent, with momentum if asked for."""

    name: ClassVar[str] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)

    @property
    def plain(self) -> bool:
        """Without momentum, weight decay and clipping."""
        return self.momentum == self.weight_decay == 0 and self.max_grad_norm is None

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """torch.optim.SGD."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@component
class Adam(Optimizer):
    """Adam."""

    name: ClassVar[str] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """torch.optim.Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)


class CallbackConfig:
    """A Lightning callback by name with its options: `{name: fl_wbc, std: 0.4}`; checked by building it once.

    Raises:
        ConfigError: unknown name or option, or a value that the callback refuses.
    """

    def __init__(self, name: str, **options: Any):
        if name not in CALLBACKS:
            raise ConfigError(f"unknown callback {name!r}; {suggest(name, CALLBACKS)}")
        known = inspect.signature(CALLBACKS[name]).parameters
        for option in options:
            if option not in known:
                raise ConfigError(f"unknown key; {suggest(option, known)}", option)
        self.name = name
        self.options = options
        try:
            self.build()
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from None

    def build(self) -> Callback:
        """A fresh callback."""
        return CALLBACKS[self.name](**self.options)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that builds it again."""
        return {"name": self.name, **self.options}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CallbackConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def parse(cls, value: Any) -> "CallbackConfig":
        """From a name, a mapping, or an instance."""
        if isinstance(value, CallbackConfig):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or "name" not in value:
            raise ConfigError(f"expected a name or a mapping with the key 'name', got {value!r}")
        return cls(**value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validation by `parse`."""
        return core_schema.no_info_plain_validator_function(cls.parse)


@component
class Client:
    """How every client trains in a round.

    Attributes:
        epochs: local epochs over the client's samples.
        steps: number of local steps instead of epochs; batches go round the data as often as needed.
        batch_size: samples a step; the last batch of an epoch may be smaller.
        optimizer: made afresh every round.
        callbacks: label -> Lightning callback of benign clients, such as `wbc: {name: fl_wbc, std: 0.4}`.
    """

    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    optimizer: Annotated[Optimizer, Slot("optimizer")] = Field(default_factory=Sgd)
    callbacks: dict[str, CallbackConfig] = Field(default_factory=dict)


def batch_plan(n: int, client: Client, generator: torch.Generator) -> list[Tensor]:
    """Which of a client's `n` samples go into which local step: one int64 index tensor a step.

    Every epoch is a fresh permutation; this plan is the only source of batches, so that engines cannot differ.
    """
    plan: list[Tensor] = []
    epochs = 0
    while len(plan) < client.steps if client.steps else epochs < client.epochs:
        plan.extend(torch.split(torch.randperm(n, generator=generator), client.batch_size))
        epochs += 1
    return plan[: client.steps]


class LocalTraining(LightningModule, ABC):
    """What one client and stacked clients have in common: how a local step is done.

    Args:
        optimizer: configuration of the local optimizer.
        generators: one a client: its own random numbers in this round (dropout, noise of callbacks).
        watched: whether callbacks look on. If none does, a step does not go through Lightning's hooks, which cost more than
            the arithmetic of a small model.

    Attributes:
        n_stacked: number of clients in this module; callbacks that also serve stacked clients read it.
        generators: one generator a client.
    """

    def __init__(self, optimizer: Optimizer, generators: list[torch.Generator], watched: bool):
        super().__init__()
        self.optimizer_config = optimizer
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
        """Scale long gradients down."""
        if limit := self.optimizer_config.max_grad_norm:
            self.clip(limit)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The local optimizer over all parameters."""
        return self.optimizer_config.build(self.parameters())


class ClientModule(LocalTraining):
    """One client's local training as a LightningModule.

    Args:
        flat: architecture and loss; the network is trained in place.
        optimizer: configuration of the local optimizer.
        generator: the client's own random numbers in this round.
        watched: see `LocalTraining`.
    """

    def __init__(self, flat: FlatNetwork, optimizer: Optimizer, generator: torch.Generator, watched: bool = True):
        super().__init__(optimizer, [generator], watched)
        self.network = flat.network
        self.loss = LOSSES[flat.loss]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ...]` inputs to `[B, K]` scores."""
        scores: Tensor = self.network(x)
        return scores

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of one batch."""
        x, y = batch
        draw_masks(self.network, len(y), self.generators[0])
        return self.loss(self(x), y).mean()

    def clip(self, limit: float) -> None:
        """Scale the gradient down."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)


REGISTRIES = {"optimizer": Registry("optimizer", [Sgd, Adam])}
