"""What an engine is: it trains a list of clients from one global model and returns their updates."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fl_lightning.clients import Client, Optimizer, batch_plan
from fl_lightning.data import Samples
from fl_lightning.engines._trainer import SharedTrainer
from fl_lightning.models import FlatNetwork
from fl_lightning.randomness import generator
from fl_lightning.registry import Component

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback


class Job(NamedTuple):
    """One client's local training: who, on which rows of which samples."""

    client: int
    samples: Samples
    rows: Tensor


@dataclass(frozen=True)
class Bench:
    """What every engine trains with.

    Attributes:
        flat: architecture and loss.
        trainer: the one Trainer of the whole run.
        seed: seed of the experiment.
        tried: for each way of training why clients cannot be stacked, or None: found out once.
    """

    flat: FlatNetwork
    trainer: SharedTrainer
    seed: int
    tried: dict[tuple[Any, ...], str | None] = field(default_factory=dict, compare=False, repr=False)

    def plan(self, job: Job, client: Client, round: int) -> list[Tensor]:
        """Row numbers of `job.samples` for every local step."""
        order = batch_plan(len(job.rows), client, generator(self.seed, "batches", round, job.client))
        rows = job.rows[torch.cat(order).to(job.rows.device)]
        return list(torch.split(rows, [len(step) for step in order]))

    def generator(self, job: Job, round: int) -> torch.Generator:
        """The client's random numbers during local training."""
        return generator(self.seed, "local", round, job.client)


@dataclass(frozen=True)
class LocalRound:
    """The local training of one round: from where, who, how.

    Attributes:
        start_D: `[D]` the model that all start from.
        jobs: n clients with at least one sample each.
        client: local epochs, batch size, optimizer.
        round: communication round, keys the random numbers.
        callbacks: makes the Lightning callbacks of one fit.
        rounds: how many rounds are planned; None: not known, and no scheduler asks.
    """

    start_D: Tensor
    jobs: Sequence[Job]
    client: Client
    round: int
    callbacks: "Callable[[], list[Callback]]" = list
    rounds: int | None = None

    @property
    def optimizer(self) -> Optimizer:
        """The clients' optimizer with the learning rate of this round."""
        return self.client.optimizer_at(self.round, self.rounds)


class Engine(Component, ABC):
    """A way to train the clients of a round; every engine gives the same numbers."""

    def check(self) -> None:
        """Raise a ConfigError where something that the engine needs is not there."""

    @abstractmethod
    def train(self, bench: Bench, local: LocalRound) -> Tensor:
        """Train every job from the same start.

        Args:
            bench: architecture, Trainer and seed.
            local: start, clients, settings, round and callbacks.

        Returns:
            `[n, D]` updates: local model minus start.
        """
