"""A degree of non-iid data between uniform and label-sorted."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.partition._base import Partition
from fl_lightning.partition._shards import shards
from fl_lightning.partition._shares import even

__all__ = ["Degree", "degree"]


def degree(
    pool: Tensor, y: Tensor, clients: int, p: float, generator: torch.Generator, *, shards_per_client: int = 1
) -> list[Tensor]:
    """A share p of each client from label-sorted shards, the rest uniform.

    Client i holds n_i samples (equal up to one): round(p n_i) from the label-sorted part of the pool, dealt in shards
    at random, and n_i - round(p n_i) from the remaining, unsorted part.

    Args:
        pool: `[n]` sample indices in random order, so that its head is a uniform sample.
        y: `[n_train]` labels, or real targets, which are sorted by value.
        clients: number of clients, at most n.
        p: degree of non-iid data in [0, 1].
        generator: deals the shards.
        shards_per_client: shards of each client's sorted share, at least 1.
    """
    sizes = even(len(pool), clients)
    sorted_sizes = [round(p * size) for size in sizes]
    n_sorted = sum(sorted_sizes)
    sorted_parts = shards(pool[:n_sorted], y, sorted_sizes, generator, shards_per_client=shards_per_client)
    uniform_sizes = [size - part for size, part in zip(sizes, sorted_sizes, strict=True)]
    uniform_parts = torch.split_with_sizes(pool[n_sorted:], uniform_sizes)
    return [torch.cat(parts) for parts in zip(sorted_parts, uniform_parts, strict=True)]


class Degree(Partition):
    """Degree p of non-iid data: a share p of every client is label-sorted, the rest uniform.

    p = 0 is `iid`, p = 1 is `shards` with `shards_per_client` shards. Regression data are sorted by their target.

    Attributes:
        p: degree of non-iid data, in [0, 1].
        shards_per_client: shards of each client's sorted share, at least 1.

    References:
        K. Wei, J. Li, M. Ding, C. Ma, Y.-S. Jeon, H. V. Poor: Covert Model Poisoning Against Federated Learning:
        Algorithm Design and Optimization, 2021, section 4.5. The paper gives the range of the degree but not its
        construction, which is chosen here.
    """

    name: ClassVar[str] = "degree"
    cites: ClassVar[tuple[str, ...]] = ("wei2021covert",)

    p: float = Field(default=0.5, ge=0, le=1)
    shards_per_client: int = Field(default=1, ge=1)

    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """Equal numbers of samples, a share p of them from label-sorted shards."""
        pool = self.pool(data, generator)
        y = data.train.y.cpu()
        return degree(pool, y, self.clients, self.p, generator, shards_per_client=self.shards_per_client)
