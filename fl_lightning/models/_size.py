"""How large a model is, before memory is asked for."""

import os

import torch

from fl_lightning.errors import ConfigError
from fl_lightning.models._base import Model

__all__ = ["check_size", "count_parameters"]

COPIES = 3
"""Vectors of parameters that every federation holds beside the clients' updates: initial, present and previous model."""


def count_parameters(model: Model, shape: tuple[int, ...], classes: int) -> int | None:
    """Number of parameters D, without memory for them; None for a model that cannot be built without.

    Example:
        >>> from fl_lightning.models import Mlp
        >>> count_parameters(Mlp(hidden=(99999999999,)), (1, 8, 8), 10)
        7499999999935
    """
    try:
        with torch.device("meta"):
            parts = model.build(shape, classes).parameters()
            return sum(part.numel() for part in parts if part.requires_grad or model.federate == "all")
    except ConfigError:
        raise
    except Exception as error:  # a user's model may do anything while it is built
        return 2**63 if "overflow" in str(error).lower() else None


def check_size(
    model: Model, shape: tuple[int, ...], classes: int, clients: int, device: torch.device, width: int
) -> None:
    """Refuse a model whose updates cannot be held.

    Args:
        model: its configuration.
        shape: shape of one input.
        classes: number of classes K.
        clients: C, participants of a round.
        device: where the `[C, D]` updates are kept.
        width: bytes a parameter.

    Raises:
        ConfigError: naming D, the least that is needed, and what there is.
    """
    n_parameters, memory = count_parameters(model, shape, classes), _memory(device)
    needed = (n_parameters or 0) * (clients + COPIES) * width
    if needed > memory:
        raise ConfigError(
            f"D={n_parameters:.3g} parameters and C={clients} clients a round need at least {needed / 1e9:,.0f} GB, "
            f"{device.type} has {memory / 1e9:,.0f} GB"
        )


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not on this system
        return float("inf")
