"""Partitions: which client holds which training samples."""

from typing import TYPE_CHECKING, Any

from fl_lightning.partition._base import Partition
from fl_lightning.partition._degree import Degree, degree
from fl_lightning.partition._dirichlet import Dirichlet, dirichlet
from fl_lightning.partition._iid import Iid, iid
from fl_lightning.partition._label_counts import label_counts
from fl_lightning.partition._natural import Natural, natural
from fl_lightning.partition._quantity import Quantity, quantity
from fl_lightning.partition._shards import Shards, shards
from fl_lightning.registry import Registry

if TYPE_CHECKING:
    from fl_lightning.partition._picture import plot
else:

    def __getattr__(name: str) -> Any:
        if name != "plot":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from fl_lightning.partition._picture import plot  # Matplotlib takes long to import

        return plot


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
