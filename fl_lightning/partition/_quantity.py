"""Clients of unequal size."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.errors import ConfigError
from fl_lightning.partition._base import Partition
from fl_lightning.partition._dirichlet import dirichlet_shares
from fl_lightning.partition._shares import apportion

__all__ = ["Quantity", "quantity"]


def quantity(
    pool: Tensor, clients: int, alpha: float, generator: torch.Generator, *, min_samples: int = 1
) -> list[Tensor]:
    """Divide a randomly ordered pool into parts of random size.

    n_i = m + (n - C m) q_i, rounded, with q ~ Dir(α, ..., α) and m = `min_samples`.

    Args:
        pool: `[n]` sample indices in random order.
        clients: number of clients C.
        alpha: concentration α > 0: small is one huge client, large is equal sizes.
        generator: draws the sizes.
        min_samples: samples that every client holds at least.

    Raises:
        ConfigError: n < C m.
    """
    spare = len(pool) - clients * min_samples
    if spare < 0:
        raise ConfigError(
            f"{clients} clients x {min_samples} samples = {clients * min_samples}, but there are only {len(pool)}",
            "min_samples",
        )
    sizes = min_samples + apportion(dirichlet_shares(alpha, clients, 1, generator)[0], spare)
    return list(torch.split_with_sizes(pool, sizes.tolist()))


class Quantity(Partition):
    """Clients of unequal size with the same label distribution.

    Attributes:
        alpha: concentration α > 0 of the sizes; 0.1 leaves most data with few clients, 100 makes them almost equal.
        min_samples: samples that every client holds at least, at least 1.

    References:
        Q. Li, Y. Diao, Q. Chen, B. He: Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022
        (quantity skew).
    """

    name: ClassVar[str] = "quantity"
    cites: ClassVar[tuple[str, ...]] = ("li2022federated",)

    alpha: float = Field(default=0.5, gt=0)
    min_samples: int = Field(default=1, ge=1)

    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """Random parts of random size."""
        pool = self.pool(data, generator)
        return quantity(pool, self.clients, self.alpha, generator, min_samples=self.min_samples)
