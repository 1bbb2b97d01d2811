"""Measure how badly federated learning can be poisoned, and what stops it.

Every public name can be imported from here; its module, with torch and Lightning, is loaded when it is first used.

Example:
    >>> from fl_lightning import Krum, load
    >>> Krum(n_byzantine=1).n_byzantine
    1
    >>> load("digits").aggregator.name
    'trimmed_mean'
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

_MODULES = (
    "config",
    "federation",
    "runs",
    "clients",
    "aggregators",
    "attacks",
    "defenses",
    "callbacks",
    "participation",
    "partition",
    "data",
    "models",
    "engines",
    "metrics",
    "registry",
)


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is None:
        for module in map(import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({name for module in _MODULES for name in import_module(f"{__name__}.{module}").__all__})
