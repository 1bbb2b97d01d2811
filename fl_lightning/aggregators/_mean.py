"""The (weighted) mean of the updates: FedAvg's rule, robust against nobody.

References:
    McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-efficient learning of deep networks from
    decentralized data", AISTATS 2017, algorithm 1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.registry import component

HALF_COLUMNS = 65_536  # columns of a 16-bit matrix that are widened at a time


def mean(updates_CD: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """Weighted mean of the rows, sum_i w_i x_i / sum_i w_i, without a copy of the matrix.

    Args:
        updates_CD: `[C, D]` floating point; 16-bit rows are summed in float32.
        weights_C: `[C]` non-negative, not all zero; None: equal.

    Returns:
        `[D]` in the dtype of the updates.

    Example:
        >>> mean(torch.tensor([[1.0, 0.0], [4.0, 3.0]]), torch.tensor([2, 1]))
        tensor([2., 1.])
    """
    dtype = torch.promote_types(updates_CD.dtype, torch.float32)
    shares_C = shares(torch.ones(len(updates_CD)) if weights_C is None else weights_C).to(updates_CD.device, dtype)
    if updates_CD.dtype == dtype:
        return shares_C @ updates_CD
    blocks = torch.split(updates_CD, HALF_COLUMNS, dim=1)
    return torch.cat([(shares_C @ block.to(dtype)).to(updates_CD.dtype) for block in blocks])


def shares(weights_C: Tensor) -> Tensor:
    """`[C]` float64 on the CPU: weights divided by their sum; equal shares where all are zero."""
    weights_C = weights_C.cpu().double()
    return weights_C / weights_C.sum() if bool(weights_C.any()) else torch.full_like(weights_C, 1 / len(weights_C))


@component
class Mean(Aggregator):
    """Mean of all updates, weighted by sample counts where they are given."""

    name: ClassVar[str] = "mean"
    robust: ClassVar[bool] = False

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """All rows with a positive weight contribute."""
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Aggregate(mean(updates_CD, weights_C), everybody if weights_C is None else weights_C > 0)
