"""Label-sorted shards."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.partition._base import Partition
from fl_lightning.partition._shares import even

__all__ = ["Shards", "shards"]


def shards(
    pool: Tensor, y: Tensor, sizes: list[int], generator: torch.Generator, *, shards_per_client: int = 2
) -> list[Tensor]:
    """Sort the pool by label, cut it into shards, and deal the shards to the clients at random.

    Client i gets exactly `sizes[i]` samples, in `shards_per_client` stretches of the sorted order whose lengths differ
    by at most one. Within a label the order of the pool is kept.

    Args:
        pool: `[n]` sample indices in random order.
        y: `[n_train]` labels, or real targets, which are sorted by value.
        sizes: samples of each client, adding up to n.
        generator: deals the shards.
        shards_per_client: shards of each client, at least 1.

    Example:
        >>> labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
        >>> parts = shards(torch.arange(8), labels, [4, 4], torch.Generator().manual_seed(0))
        >>> [labels[part].unique().tolist() for part in parts]
        [[0, 1], [2, 3]]
    """
    cuts = torch.tensor([even(size, shards_per_client) for size in sizes]).flatten()
    seats = torch.randperm(len(cuts), generator=generator)  # the j-th stretch goes to seat seats[j] of clients x shards
    stretches = torch.split_with_sizes(pool[y[pool].argsort(stable=True)], cuts[seats].tolist())
    dealt = [stretches[stretch] for stretch in seats.argsort().tolist()]
    return [torch.cat(dealt[seat : seat + shards_per_client]) for seat in range(0, len(dealt), shards_per_client)]


class Shards(Partition):
    """Label-sorted shards dealt at random: each client sees few labels, in equal numbers.

    Attributes:
        shards_per_client: shards of each client, at least 1; with 2 and as many samples a class as a few shards, a
            client holds two labels, rarely three.

    References:
        H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep
        Networks from Decentralized Data, AISTATS 2017, section 3 (non-IID). 200 shards for 100 clients also in J. Sun,
        A. Li, L. DiValentin, A. Hassanzadeh, Y. Chen, H. Li: FL-WBC: Enhancing Robustness against Model Poisoning
        Attacks in Federated Learning from a Client Perspective, NeurIPS 2021, appendix C.
    """

    name: ClassVar[str] = "shards"
    cites: ClassVar[tuple[str, ...]] = ("mcmahan2017communication",)

    shards_per_client: int = Field(default=2, ge=1)

    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """Equal numbers of samples in `shards_per_client` label-sorted stretches."""
        pool = self.pool(data, generator)
        sizes = even(len(pool), self.clients)
        return shards(pool, data.train.y.cpu(), sizes, generator, shards_per_client=self.shards_per_client)
