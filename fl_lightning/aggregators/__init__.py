"""Aggregators: the server's rules, `[C, D] -> [D]`."""

from fl_lightning.aggregators._base import Aggregate, Aggregator, finite_rows
from fl_lightning.registry import Registry

REGISTRIES = {"aggregator": Registry("aggregator", [])}

__all__ = ["Aggregate", "Aggregator", "finite_rows"]
