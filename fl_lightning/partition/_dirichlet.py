"""Label proportions from a Dirichlet distribution."""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset
from fl_lightning.errors import ConfigError
from fl_lightning.partition._base import Partition
from fl_lightning.partition._shares import apportion

__all__ = ["Dirichlet", "dirichlet", "dirichlet_shares"]

DRAWS = 100
"""Draws of the proportions before it is said that no client can be kept from going empty."""


def dirichlet_shares(alpha: float, clients: int, rows: int, generator: torch.Generator) -> Tensor:
    """`[rows, clients]` float64 draws of Dir(α, ..., α); each row adds up to 1.

    NumPy draws them, seeded from the generator: torch's distributions take no generator, and its gamma draws underflow
    for small α.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(clients, alpha), size=rows))


def dirichlet(
    pool: Tensor,
    y: Tensor,
    clients: int,
    classes: int,
    alpha: float,
    generator: torch.Generator,
    *,
    min_samples: int = 1,
) -> list[Tensor]:
    """Divide every class among the clients in proportions drawn from a Dirichlet distribution.

    q_k ~ Dir(α, ..., α) independently for every class k; client i gets a share q_k,i of the samples of class k. All
    proportions are drawn again, up to 100 times, while a client would hold fewer than `min_samples`.

    Args:
        pool: `[n]` sample indices in random order.
        y: `[n_train]` int64 labels in 0 ... K - 1.
        clients: number of clients.
        classes: number of classes K.
        alpha: concentration α > 0: small is one client a class, large is uniform.
        generator: draws the proportions.
        min_samples: samples that every client holds at least.

    Raises:
        ConfigError: no draw gave every client `min_samples`.
    """
    labels = y[pool]
    totals_K = torch.bincount(labels, minlength=classes)
    for _ in range(DRAWS):
        counts_KC = apportion(dirichlet_shares(alpha, clients, classes, generator), totals_K[:, None])
        if counts_KC.sum(0).min() >= min_samples:
            break
    else:
        raise ConfigError(
            f"in {DRAWS} draws with alpha={alpha:g} at least one of {clients} clients was left with fewer than "
            f"min_samples={min_samples} of the {len(pool)} samples: raise alpha or take fewer clients",
            "alpha",
        )
    pieces = torch.split_with_sizes(pool[labels.argsort(stable=True)], counts_KC.flatten().tolist())
    return [torch.cat(pieces[client::clients]) for client in range(clients)]


class Dirichlet(Partition):
    """Label proportions from a Dirichlet distribution: clients differ in labels and in size.

    Attributes:
        alpha: concentration α > 0; 0.1 is strongly skewed, 100 almost uniform.
        min_samples: samples that every client holds at least, at least 1.

    References:
        T.-M. H. Hsu, H. Qi, M. Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification, 2019; in this form, class by class, E. Bagdasaryan, A. Veit, Y. Hua, D. Estrin, V. Shmatikov:
        How To Backdoor Federated Learning, AISTATS 2020 (α = 0.9).
    """

    name: ClassVar[str] = "dirichlet"
    cites: ClassVar[tuple[str, ...]] = ("hsu2019measuring", "bagdasaryan2020how")

    alpha: float = Field(default=0.5, gt=0)
    min_samples: int = Field(default=1, ge=1)

    def assign(self, data: Dataset, generator: torch.Generator) -> list[Tensor]:
        """Every class divided in random proportions; raises ConfigError for regression data, too."""
        if data.task != "classification":
            raise ConfigError(
                "dirichlet divides classes, but these are regression data: use degree or quantity", "name"
            )
        pool = self.pool(data, generator)
        y = data.train.y.cpu()
        return dirichlet(pool, y, self.clients, data.classes, self.alpha, generator, min_samples=self.min_samples)
