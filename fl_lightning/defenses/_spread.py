"""How far numbers lie from their middle: medians, standardised deviations, counts from shares, factors that shorten rows."""

import torch
from torch import Tensor

EQUAL = 1e-12  # a standard deviation below this share of the largest number is rounding


def median(values: Tensor) -> Tensor:
    """The median over the last dimension; for an even count the mean of the two middle values.

    Example:
        >>> median(torch.tensor([4.0, 1.0, 3.0, 10.0]))
        tensor(3.5000)
    """
    ordered, n = values.sort(dim=-1).values, values.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def mz_scores(values_C: Tensor) -> Tensor:
    """`[C]` float64, |v_i - median| / std with the population's std; all 0 where the numbers are equal but for rounding.

    Example:
        >>> mz_scores(torch.tensor([1.0, 1.0, 1.0, 5.0])).round(decimals=3)
        tensor([0.0000, 0.0000, 0.0000, 2.3090], dtype=torch.float64)
    """
    values_C = values_C.double()
    std = values_C.std(correction=0)
    if std <= EQUAL * values_C.abs().max():
        return torch.zeros_like(values_C)
    return (values_C - median(values_C)).abs() / std


def count(share: float, n: int) -> int:
    """How many of n make a share, rounded down but for rounding errors, at least 1.

    Example:
        >>> count(0.3, 10), count(0.3, 2)
        (3, 1)
    """
    return max(1, int(share * n + 1e-9))


def shortening(norms_C: Tensor, bound: Tensor | float) -> Tensor:
    """`[C]` factors min(1, bound / n_i) that bring every row to the bound; 1 for a row of zeros."""
    return torch.where(norms_C > bound, bound / norms_C.clamp(min=1e-300), 1.0)
