"""Partitions: which client holds which training samples."""

from fl_lightning.partition._base import Partition
from fl_lightning.partition._degree import Degree, degree
from fl_lightning.partition._dirichlet import Dirichlet, dirichlet
from fl_lightning.partition._iid import Iid, iid
from fl_lightning.partition._natural import Natural, natural
from fl_lightning.partition._picture import label_counts, plot
from fl_lightning.partition._quantity import Quantity, quantity
from fl_lightning.partition._shards import Shards, shards
from fl_lightning.registry import Registry

REGISTRIES = {"partition": Registry("partition", Partition, [Iid, Shards, Degree, Dirichlet, Quantity, Natural])}

__all__ = [
    "Degree",
    "Dirichlet",
    "Iid",
    "Natural",
    "Partition",
    "Quantity",
    "Shards",
    "degree",
    "dirichlet",
    "iid",
    "label_counts",
    "natural",
    "plot",
    "quantity",
    "shards",
]
