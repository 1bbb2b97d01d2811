"""The owners that the data come with."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.errors import ConfigError
from fl_lightning.partition._base import Partition

__all__ = ["Natural", "natural"]

Choice = Literal["largest", "random"]


def natural(
    writers: Tensor, clients: int | Literal["all"], choose: Choice, generator: torch.Generator, min_samples: int = 1
) -> list[Tensor]:
    """The samples of `clients` owners.

    Args:
        writers: `[n_train]` owner of each sample.
        clients: number of clients, or `all`.
        choose: `largest` takes the owners with most samples (of equals the one with the smaller id), `random` any.
        generator: chooses the owners when `random`.
        min_samples: owners with fewer samples cannot be chosen.

    Raises:
        ConfigError: fewer owners than clients.

    Example:
        >>> parts = natural(torch.tensor([7, 5, 5, 9, 9, 9]), 2, "largest", torch.Generator())
        >>> [part.tolist() for part in parts]
        [[3, 4, 5], [1, 2]]
    """
    owners, counts = torch.unique(writers, return_counts=True)
    enough = counts >= min_samples
    owners, counts = owners[enough], counts[enough]
    if clients == "all":
        clients = len(owners)
    if not 0 < clients <= len(owners):
        small = f" with at least {min_samples} samples" if min_samples > 1 else ""
        raise ConfigError(f"{clients} clients, but the data have only {len(owners)} owners{small}", "clients")
    largest = counts.argsort(descending=True, stable=True)
    order = largest if choose == "largest" else torch.randperm(len(owners), generator=generator)
    return [(writers == owner).nonzero().flatten() for owner in owners[order[:clients]]]


class Natural(Partition):
    """The owners that the data come with: one client an owner, such as FEMNIST's writers or the clients of a table.

    Owners that are not chosen take no part, so the partition covers the training set only when every owner is a
    client. `samples_per_client` cuts every larger client to that many of its own samples, at random.

    Attributes:
        clients: number of clients, or `all`: every owner with at least `min_samples` training samples.
        choose: `largest` takes the owners with most samples, `random` any.
        min_samples: owners with fewer training samples take no part.
        test_by_owner: report the accuracy on every owner's test samples, where the data name the owners of these, too.

    References:
        S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konečný, H. B. McMahan, V. Smith, A. Talwalkar: LEAF: A Benchmark
        for Federated Settings, 2018; used by S. Lu, R. Li, X. Chen, Y. Ma: Defense against Local Model Poisoning
        Attacks to Byzantine-Robust Federated Learning, Frontiers of Computer Science 16(6), 2022, section 5.1.
    """

    name: ClassVar[str] = "natural"
    cites: ClassVar[tuple[str, ...]] = ("caldas2018leaf",)

    clients: Annotated[int, Field(ge=1)] | Literal["all"] = 50  # type: ignore[assignment]
    choose: Choice = "largest"
    min_samples: int = Field(default=1, ge=1)
    test_by_owner: bool = True

    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """The samples of each chosen owner; raises ConfigError for data without owners, too."""
        if data.owners is None:
            raise ConfigError(
                "natural needs data that name their owners, such as femnist or frame with an owner column: use iid or "
                "dirichlet",
                "name",
            )
        parts = natural(data.owners.cpu(), self.clients, self.choose, generator, self.min_samples)
        return [part[torch.randperm(len(part), generator=generator)[: self.samples_per_client]] for part in parts]
