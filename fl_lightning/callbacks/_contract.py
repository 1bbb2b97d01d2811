"""What callbacks and stacked clients tell each other; modules and callbacks of other projects say nothing of it.

This is the one place that asks for attributes that Lightning's classes do not declare.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule

__all__ = ["client_of", "generators_of", "is_stackable", "n_stacked", "one_client_names", "reported", "trained_parameters"]


def n_stacked(module: "LightningModule") -> int:
    """How many clients a module holds: each parameter is `[C, ...]` where it is more than one."""
    return int(getattr(module, "n_stacked", 1))


def generators_of(module: "LightningModule") -> Sequence[torch.Generator | None]:
    """Random numbers of each client; None: those of torch."""
    return getattr(module, "generators", [None])


def client_of(module: "LightningModule") -> Any:
    """What gives the scores, losses and random numbers of a client: the module itself, or `UserClient` beside a user's own."""
    return getattr(module, "fl_client", module)


def one_client_names(module: "LightningModule", names: Iterable[str]) -> Iterable[str]:
    """What the parameters are called in one client; `names` where the module has just these."""
    return getattr(module, "parameter_names", names)


def is_stackable(callback: "Callback") -> bool:
    """Whether a callback says that it works on stacked clients."""
    return bool(getattr(callback, "stackable", False))


def reported(callback: "Callback") -> dict[str, float]:
    """The figures of its last fit."""
    return dict(getattr(callback, "metrics", {}))


def trained_parameters(module: "LightningModule", entries: int | None = None) -> list[nn.Parameter]:
    """The parameters that training moves, in their order; frozen ones are no part of what a client sends.

    Args:
        module: in training; one of stacked clients has `n_stacked`.
        entries: length of the vector that is to be cut into their shapes; where it has entries for frozen ones, too (a
            federation that sends all), these are among the parameters.
    """
    every = list(module.parameters())
    moving = [part for part in every if part.requires_grad]
    size = sum(part.numel() for part in every) // n_stacked(module)
    return every if entries == size else moving
