"""What a partition is: which training samples each client holds."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Component


class Partition(Component, ABC):
    """Deals the training samples to the clients: disjoint, deterministic, covering unless capped.

    Attributes:
        clients: number of clients, at least 1.
        samples_per_client: cap on the samples of a client, on average over the clients where the partition makes them
            unequal; the training set is first cut at random to `clients * samples_per_client`. None: everything is
            dealt out.
    """

    if TYPE_CHECKING:

        @property
        def test_by_owner(self) -> bool:
            """Whether the accuracy on every owner's test samples is reported; a field of partitions that know owners."""
            return False
    else:
        test_by_owner = False

    clients: int = Field(default=50, ge=1)
    samples_per_client: int | None = Field(default=None, ge=1)

    @abstractmethod
    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """For each client the int64 indices into `data.train` that it holds, in no particular order.

        Raises:
            ConfigError: a client would be left without samples, or there are fewer samples than asked for.
        """

    def pool(self, data: Dataset, generator: torch.Generator) -> Tensor:
        """Indices of the samples to be dealt, in random order: all, or `clients * samples_per_client` of them.

        Raises:
            ConfigError: fewer training samples than clients, or than asked for.
        """
        available = len(data.train)
        if available < self.clients:
            raise ConfigError(
                f"{self.clients} clients cannot share {available} training samples, one each at least", "clients"
            )
        wanted = available if self.samples_per_client is None else self.clients * self.samples_per_client
        if wanted > available:
            raise ConfigError(
                f"{self.clients} clients x {self.samples_per_client} samples = {wanted}, but there are only "
                f"{available} training samples: at most {available // self.clients} a client",
                "samples_per_client",
            )
        return torch.randperm(available, generator=generator)[:wanted]
