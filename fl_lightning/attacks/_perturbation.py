"""Directions in which crafted updates leave the mean of the honest ones.

References:
    Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning", NDSS 2021, section IV-B (inverse unit vector, inverse standard deviation, inverse sign).
"""

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["unit", "sign", "std"]
KINDS: tuple[Kind, ...] = ("unit", "sign", "std")


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own type where that is wider: half precision is no type to compute in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def direction(vector_D: Tensor) -> Tensor:
    """The vector at length 1; zero where it is zero."""
    length = torch.linalg.vector_norm(vector_D)
    return vector_D / length if bool(length > 0) else torch.zeros_like(vector_D)


def perturbation(known_HD: Tensor, kind: Kind) -> Tensor:
    r"""The direction p in which a crafted update $\mu + \gamma p$ leaves the mean $\mu$ of the known ones.

    $-\mu / \|\mu\|$ for `unit`, $-\operatorname{sign}(\mu)$ for `sign` and $-\sigma$ for `std`.

    Args:
        known_HD: `[H, D]` updates that the attackers know.
        kind: which of the three; sigma has divisor H.

    Returns:
        `[D]`, zero where the mean (the spread, for `std`) is zero.

    Example:
        >>> perturbation(torch.tensor([[3.0, 3.0], [3.0, 5.0]]), "unit")
        tensor([-0.6000, -0.8000])
        >>> perturbation(torch.tensor([[3.0, 3.0], [3.0, 5.0]]), "std")
        tensor([-0., -1.])
    """
    known_HD = wide(known_HD)
    if kind == "unit":
        return -direction(known_HD.mean(0))
    if kind == "sign":
        return -known_HD.mean(0).sign()
    return -known_HD.std(0, correction=0)


def half_flipped(direction_D: Tensor, generator: torch.Generator) -> Tensor:
    """The direction with the sign of a random half of its coordinates reversed, against defenses that count signs.

    Args:
        direction_D: `[D]` where to go.
        generator: CPU generator; draws the D // 2 coordinates.
    """
    signs_D = torch.ones(len(direction_D))
    signs_D[torch.randperm(len(direction_D), generator=generator)[: len(direction_D) // 2]] = -1
    return direction_D * signs_D.to(direction_D)
