"""The owners that the data come with."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.errors import ConfigError
from fl_lightning.partition._base import Partition
from fl_lightning.registry import component

__all__ = ["Natural", "natural"]

Choice = Literal["largest", "random"]


def natural(writers: Tensor, clients: int, choose: Choice, generator: torch.Generator) -> list[Tensor]:
    """The samples of `clients` writers.

    Args:
        writers: `[n_train]` owner of each sample.
        clients: number of clients.
        choose: `largest` takes the writers with most samples (of equals the one with the smaller id), `random` any.
        generator: chooses the writers when `random`.

    Raises:
        ConfigError: fewer writers than clients.

    Example:
        >>> parts = natural(torch.tensor([7, 5, 5, 9, 9, 9]), 2, "largest", torch.Generator())
        >>> [part.tolist() for part in parts]
        [[3, 4, 5], [1, 2]]
    """
    owners, counts = torch.unique(writers, return_counts=True)
    if len(owners) < clients:
        raise ConfigError(f"{clients} clients, but the data have only {len(owners)} writers", "clients")
    largest = counts.argsort(descending=True, stable=True)
    order = largest if choose == "largest" else torch.randperm(len(owners), generator=generator)
    return [(writers == owner).nonzero().flatten() for owner in owners[order[:clients]]]


@component
class Natural(Partition):
    """The owners that the data come with: one client a writer, such as FEMNIST's.

    Writers that are not chosen take no part, so the partition covers the training set only when every writer is a
    client. `samples_per_client` cuts every larger client to that many of its own samples, at random.

    Attributes:
        choose: `largest` takes the writers with most samples, `random` any.

    References:
        S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konečný, H. B. McMahan, V. Smith, A. Talwalkar: LEAF: A Benchmark
        for Federated Settings, 2018; used by S. Lu, R. Li, X. Chen, Y. Ma: Defense against Local Model Poisoning
        Attacks to Byzantine-Robust Federated Learning, Frontiers of Computer Science 16(6), 2022, section 5.1.
    """

    name: ClassVar[str] = "natural"

    choose: Choice = "largest"

    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """The samples of each chosen writer; raises ConfigError for data without writers, too."""
        if data.writers is None:
            raise ConfigError(
                "natural needs data that name their writers, such as femnist: use iid or dirichlet", "name"
            )
        parts = natural(data.writers.cpu(), self.clients, self.choose, generator)
        return [part[torch.randperm(len(part), generator=generator)[: self.samples_per_client]] for part in parts]
