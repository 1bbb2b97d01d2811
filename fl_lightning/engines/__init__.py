"""Engines: how the clients of a round are trained."""

from fl_lightning.engines._base import Bench, Engine, Job, LocalRound
from fl_lightning.engines._keyed import keyed_randomness
from fl_lightning.engines._ray import Ray
from fl_lightning.engines._sequential import Sequential
from fl_lightning.engines._trainer import SharedTrainer, TrainerSettings
from fl_lightning.engines._vectorized import Vectorized
from fl_lightning.registry import Registry

REGISTRIES = {"engine": Registry("engine", Engine, [Vectorized, Sequential, Ray])}

__all__ = [
    "Bench",
    "Engine",
    "Job",
    "LocalRound",
    "Ray",
    "Sequential",
    "SharedTrainer",
    "TrainerSettings",
    "Vectorized",
    "keyed_randomness",
]
