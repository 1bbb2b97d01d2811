"""Optuna: the search for the strongest attack, or for the best defense."""

from fl_lightning.search._ended import feasible
from fl_lightning.search._pack import Unpacked, pack, unpack
from fl_lightning.search._reported import check_metrics
from fl_lightning.search._space import search_space, shown, tunables
from fl_lightning.search._storage import studies_url
from fl_lightning.search._sweep import SweepOutcome, strongest, sweep

__all__ = [
    "SweepOutcome",
    "Unpacked",
    "check_metrics",
    "feasible",
    "pack",
    "search_space",
    "shown",
    "strongest",
    "studies_url",
    "sweep",
    "tunables",
    "unpack",
]
