"""Auror: a few coordinates in which the rows fall into two distant groups tell honest clients from the others."""

import torch
from torch import Tensor

from fl_lightning.defenses._clusters import k_means, two_means
from fl_lightning.defenses._spread import median


def indicative_columns(rows_CF: Tensor, threshold: float | None = None) -> Tensor:
    """`[F]` bool, columns whose two groups (exact 2-means) have centres at least `threshold` apart.

    Args:
        rows_CF: `[C, F]`.
        threshold: in the unit of the rows; None: twice the median over the columns.

    Example:
        >>> indicative_columns(torch.tensor([[0.0, 1.0], [0.1, 1.0], [5.0, 1.1]]), 1.0)
        tensor([ True, False])
    """
    gaps_F = two_means(rows_CF).gap
    bound = 2 * float(median(gaps_F)) if threshold is None else threshold
    return (gaps_F >= bound) & (gaps_F > 0)


def larger_group(rows_CF: Tensor, beta: float, seed: int) -> Tensor:
    """`[C]` bool on the CPU, the larger of two groups by k-means; all rows when the centres are less than beta apart.

    Args:
        rows_CF: `[C, F]` the indicative columns.
        beta: least distance of the centres at which the smaller group is dropped.
        seed: of k-means.
    """
    everybody_C = torch.ones(len(rows_CF), dtype=torch.bool)
    if len(rows_CF) < 2 or not rows_CF.shape[1]:
        return everybody_C
    rows_CF = rows_CF.double().cpu()
    keep_C = k_means(rows_CF, 2, seed)[0] == 0
    if bool(keep_C.all()) or float((rows_CF[keep_C].mean(0) - rows_CF[~keep_C].mean(0)).norm()) < beta:
        return everybody_C
    return keep_C
