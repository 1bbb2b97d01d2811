"""Measure how badly federated learning can be poisoned, and what stops it.

The verbs and nouns of `__all__` are what a person needs; every component can be imported from here as well. A name's module,
with torch and Lightning, is loaded when the name is first used.

Example:
    >>> from fl_lightning import Krum, load
    >>> Krum(n_byzantine=1).n_byzantine
    1
    >>> load("digits").aggregator.name
    'trimmed_mean'
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see: no more than what there is
    from fl_lightning._matrix import MatrixOutcome, matrix
    from fl_lightning.aggregators import *
    from fl_lightning.attacks import *
    from fl_lightning.callbacks import *
    from fl_lightning.clients import *
    from fl_lightning.config import *
    from fl_lightning.data import *
    from fl_lightning.defenses import *
    from fl_lightning.engines import *
    from fl_lightning.errors import ConfigError
    from fl_lightning.federation import *
    from fl_lightning.metrics import *
    from fl_lightning.models import *
    from fl_lightning.papers import Reproduction, reproduce
    from fl_lightning.participation import *
    from fl_lightning.partition import *
    from fl_lightning.registry import *
    from fl_lightning.runs import *
    from fl_lightning.search import SweepOutcome, sweep
    from fl_lightning.tracking import Registered

_HOMES = {
    "ConfigError": "errors",
    "Experiment": "config",
    "Federation": "federation",
    "MatrixOutcome": "_matrix",
    "Outcome": "runs",
    "Registered": "tracking",
    "Reproduction": "papers",
    "SweepOutcome": "search",
    "dump": "config",
    "load": "config",
    "matrix": "_matrix",
    "open": "runs",
    "reproduce": "papers",
    "resume": "runs",
    "run": "runs",
    "sweep": "search",
}
"""Verbs and nouns, and where they live."""

_SLOTS = (
    "aggregators",
    "attacks",
    "callbacks",
    "clients",
    "config",
    "data",
    "defenses",
    "engines",
    "federation",
    "metrics",
    "models",
    "participation",
    "partition",
    "registry",
    "runs",
)
"""Modules whose public names can be had from here, too."""

__all__ = [
    "ConfigError",
    "Experiment",
    "Federation",
    "MatrixOutcome",
    "Outcome",
    "Registered",
    "Reproduction",
    "SweepOutcome",
    "dump",
    "load",
    "matrix",
    "open",
    "reproduce",
    "resume",
    "run",
    "sweep",
]

if not TYPE_CHECKING:  # a type checker that sees a module's `__getattr__` lets every misspelt name pass

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is None:
            for module in map(import_module, (f"{__name__}.{slot}" for slot in _SLOTS)):
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    flat = {name for slot in _SLOTS for name in import_module(f"{__name__}.{slot}").__all__}
    return sorted({*flat, *__all__})
