"""What callbacks and stacked clients tell each other; modules and callbacks of other projects say nothing of it.

This is the one place that asks for attributes that Lightning's classes do not declare.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule

__all__ = ["generators_of", "is_stackable", "n_stacked", "one_client_names", "reported"]


def n_stacked(module: "LightningModule") -> int:
    """How many clients a module holds: each parameter is `[C, ...]` where it is more than one."""
    return int(getattr(module, "n_stacked", 1))


def generators_of(module: "LightningModule") -> Sequence[torch.Generator | None]:
    """Random numbers of each client; None: those of torch."""
    return getattr(module, "generators", [None])


def one_client_names(module: "LightningModule", names: Iterable[str]) -> Iterable[str]:
    """What the parameters are called in one client; `names` where the module has just these."""
    return getattr(module, "parameter_names", names)


def is_stackable(callback: "Callback") -> bool:
    """Whether a callback says that it works on stacked clients."""
    return bool(getattr(callback, "stackable", False))


def reported(callback: "Callback") -> dict[str, float]:
    """The figures of its last fit."""
    return dict(getattr(callback, "metrics", {}))
