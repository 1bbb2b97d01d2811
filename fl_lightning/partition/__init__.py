"""Partitions: which client holds which training samples."""

from fl_lightning.partition._base import Partition
from fl_lightning.registry import Registry

REGISTRIES = {"partition": Registry("partition", [])}

__all__ = ["Partition"]
