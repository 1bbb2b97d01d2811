"""What a partition is: which training samples each client holds."""

from abc import ABC, abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.registry import Component, component


@component
class Partition(Component, ABC):
    """Deals the training samples to the clients: disjoint, deterministic, covering unless capped.

    Attributes:
        clients: number of clients, at least 1.
        samples_per_client: cap on a client's samples; the training set is first cut at random to
            `clients * samples_per_client`. None: everything is dealt out.
    """

    clients: int = Field(default=50, ge=1)
    samples_per_client: int | None = Field(default=None, ge=1)

    @abstractmethod
    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """For each client the int64 indices into `data.train` that it holds.

        Raises:
            ConfigError: a client would be left without samples, or there are fewer samples than asked for.
        """
