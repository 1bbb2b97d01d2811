"""Optuna: the search for the strongest attack, or for the best defense."""

from fl_lightning.search._space import search_space, tunables
from fl_lightning.search._storage import studies_url
from fl_lightning.search._sweep import SweepOutcome, strongest, sweep

__all__ = [
    "SweepOutcome",
    "search_space",
    "strongest",
    "studies_url",
    "sweep",
    "tunables",
]
