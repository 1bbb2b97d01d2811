"""Independent and identically distributed clients."""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.partition._base import Partition
from fl_lightning.partition._shares import even

__all__ = ["Iid", "iid"]


def iid(pool: Tensor, clients: int) -> list[Tensor]:
    """Equal stretches of a randomly ordered pool of sample indices; sizes differ by at most one.

    Example:
        >>> [part.tolist() for part in iid(torch.tensor([4, 2, 0, 1, 3]), clients=2)]
        [[4, 2, 0], [1, 3]]
    """
    return list(torch.split_with_sizes(pool, even(len(pool), clients)))


class Iid(Partition):
    """Uniformly at random: every client sees the same label distribution, in equal numbers.

    References:
        H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep
        Networks from Decentralized Data, AISTATS 2017, section 3 (IID).
    """

    name: ClassVar[str] = "iid"

    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """Equal random parts of the training set."""
        return iid(self.pool(data, generator), self.clients)
