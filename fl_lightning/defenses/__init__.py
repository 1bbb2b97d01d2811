"""Defenses: detectors and transforms between the clients and the aggregator."""

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.registry import Registry

REGISTRIES = {"defense": Registry("defense", [])}

__all__ = ["Defense", "ServerContext", "State", "Verdict"]
