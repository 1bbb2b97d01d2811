"""Coordinate-wise median.

References:
    Yin, Chen, Kannan, Bartlett, "Byzantine-robust distributed learning: towards optimal statistical rates", ICML
    2018, definition 1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._order import ranked_blocks
from fl_lightning.aggregators._survivors import surviving_shares
from fl_lightning.aggregators._threads import column_wise


def middle_ranks(n_rows: int, lower: bool) -> range:
    """The rank(s) of the median among n rows: one, or two for an even number unless the lower one is asked for."""
    return range((n_rows - 1) // 2, (n_rows + 1) // 2 if lower else n_rows // 2 + 1)


def median(updates_CD: Tensor, *, lower: bool = False) -> Tensor:
    """Median of every coordinate.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        lower: for an even number of rows take the lower of the two middle values, as `torch.median` does, instead
            of their mean.

    Returns:
        `[D]` in the dtype of the updates.

    Example:
        >>> updates_CD = torch.tensor([[1.0, 10.0], [2.0, -1.0], [3.0, 4.0], [4.0, 100.0]])
        >>> median(updates_CD), median(updates_CD, lower=True)
        (tensor([2.5000, 7.0000]), tensor([2., 4.]))
    """
    ranks = middle_ranks(len(updates_CD), lower)

    def middle(part_CD: Tensor) -> Tensor:
        median_B = part_CD.new_empty(part_CD.shape[1])
        for columns, values in ranked_blocks(part_CD, ranks, ordered=False):
            median_B[columns] = values[0] if len(values) == 1 else (values[0] + values[1]) / 2
        return median_B

    return column_wise(middle, updates_CD)


class Median(Aggregator):
    """Median of every coordinate; weights are ignored."""

    name: ClassVar[str] = "median"
    cites: ClassVar[tuple[str, ...]] = ("yin2018byzantine",)
    lower: bool = False

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """Every row contributes somewhere."""
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Aggregate(median(updates_CD, lower=self.lower), everybody)

    def shares(self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None) -> Tensor:
        """Share of the middle values."""
        ranks = middle_ranks(len(updates_CD), self.lower)
        return surviving_shares(updates_CD, ranks[0], ranks[-1])
