"""The (weighted) mean of the updates: FedAvg's rule, robust against nobody.

References:
    McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-efficient learning of deep networks from
    decentralized data", AISTATS 2017, algorithm 1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate
from fl_lightning.aggregators._blocks import weighted_sum
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean


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
    return weighted_sum(updates_CD, shares(torch.ones(len(updates_CD)) if weights_C is None else weights_C))


def shares(weights_C: Tensor) -> Tensor:
    """`[C]` float64 on the CPU: weights divided by their sum; equal shares where all are zero."""
    weights_C = weights_C.cpu().double()
    return weights_C / weights_C.sum() if bool(weights_C.any()) else torch.full_like(weights_C, 1 / len(weights_C))


class Mean(WeightedMean):
    """Mean of all updates, weighted by sample counts where they are given."""

    name: ClassVar[str] = "mean"
    cites: ClassVar[tuple[str, ...]] = ("mcmahan2017communication",)
    robust: ClassVar[bool] = False
    scores_tell: ClassVar[bool] = True

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """All rows with a positive weight contribute."""
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Aggregate(mean(updates_CD, weights_C), everybody if weights_C is None else weights_C > 0)

    def _as_if_finite(self, updates_CD: Tensor, weights_C: Tensor | None, past: Past | None) -> Aggregate | None:
        """The mean itself tells whether a row holds NaN or Inf, without a pass of its own over the rows."""
        result = self.aggregate(updates_CD, weights_C)
        return result if bool(torch.isfinite(result.update.sum())) else None

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The weights, divided by their sum."""
        return Weighed(shares(torch.ones(len(geometry)) if weights_C is None else weights_C))
