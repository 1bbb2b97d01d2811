"""How a number of samples is divided into whole numbers."""

import torch
from torch import Tensor

__all__ = ["apportion", "even"]


def even(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by at most one.

    Example:
        >>> even(11, 4)
        [3, 3, 3, 2]
    """
    return [total // parts + (part < total % parts) for part in range(parts)]


def apportion(shares: Tensor, total: Tensor | int) -> Tensor:
    """Whole numbers in the proportion of `shares`, adding up to exactly `total`.

    The cumulative shares are rounded: n_i = round(T (s_1 + ... + s_i)) - round(T (s_1 + ... + s_(i-1))).

    Args:
        shares: `[..., n]`, at least 0, adding up to 1 along the last dimension.
        total: T, a number, or `[..., 1]`.

    Example:
        >>> apportion(torch.tensor([0.5, 0.25, 0.25]), 10).tolist()
        [5, 3, 2]
    """
    rounded = (shares.double().cumsum(-1) * total).round().long()
    return rounded.diff(dim=-1, prepend=torch.zeros_like(rounded[..., :1]))
