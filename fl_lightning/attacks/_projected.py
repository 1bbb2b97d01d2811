"""Vectors brought back into a ball."""

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]


def projected(delta_D: Tensor, radius: float, norm: Norm = "l2") -> Tensor:
    """The nearest point of the ball of the given radius around 0.

    Args:
        delta_D: `[..., D]` vectors; every last dimension is projected by itself.
        radius: of the ball, >= 0.
        norm: `l2`: scaled down to the radius where longer; `linf`: every coordinate clamped to it.

    Returns:
        The vectors; those inside are returned as they are.

    Example:
        >>> projected(torch.tensor([3.0, 4.0, 0.0]), 2.0)
        tensor([1.2000, 1.6000, 0.0000])
        >>> projected(torch.tensor([3.0, -4.0, 0.5]), 2.0, "linf")
        tensor([ 2.0000, -2.0000,  0.5000])
    """
    if norm == "linf":
        return delta_D.clamp(-radius, radius)
    lengths = torch.linalg.vector_norm(delta_D, dim=-1, keepdim=True)
    return torch.where(lengths > radius, delta_D * (radius / lengths.clamp(min=1e-30)), delta_D)
