"""The local optimizers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field

from fl_lightning.registry import Component


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


class Adam(Optimizer):
    """Adam."""

    name: ClassVar[str] = "adam"
    cites: ClassVar[tuple[str, ...]] = ("kingma2015adam",)
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """torch.optim.Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
