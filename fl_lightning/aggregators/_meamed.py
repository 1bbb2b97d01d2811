"""Mean around the median: in every coordinate, the mean of the C - f values nearest to the median.

References:
    Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, definition 8 (mean around median).
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._bulyan import mean_near_median, surviving_near_median
from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._threads import column_wise


def meamed(updates_CD: Tensor, n_byzantine: int) -> Tensor:
    """Mean of the C - f values nearest to the median of every coordinate; of two equally near the smaller one.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f.

    Example:
        >>> meamed(torch.tensor([[0.0], [1.0], [3.0], [9.0]]), 1)
        tensor([1.3333])
    """
    check_majority("mean around the median", len(updates_CD), n_byzantine)
    rows, count = torch.arange(len(updates_CD)), len(updates_CD) - n_byzantine
    return column_wise(lambda part_CD: mean_near_median(part_CD, rows, count), updates_CD)


class Meamed(Aggregator):
    """Mean, in every coordinate, of the C - f values nearest to the median; weights are ignored."""

    name: ClassVar[str] = "meamed"
    cites: ClassVar[tuple[str, ...]] = ("xie2018generalized",)
    n_byzantine: Byzantine

    def check(self, n_clients: int) -> None:
        """C > 2f."""
        check_majority("mean around the median", n_clients, self.n_byzantine)

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """Every row contributes somewhere."""
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Aggregate(meamed(updates_CD, self.n_byzantine), everybody)

    def shares(self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None) -> Tensor:
        """Share of the values near the median."""
        rows = torch.arange(len(updates_CD))
        return surviving_near_median(updates_CD, rows, len(updates_CD) - self.n_byzantine)
