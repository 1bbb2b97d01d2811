"""Trimmed mean: in every coordinate, the mean of what remains without the f smallest and the f largest values.

References:
    Yin, Chen, Kannan, Bartlett, "Byzantine-robust distributed learning: towards optimal statistical rates", ICML
    2018, definition 2 (there the share beta = f / C).
"""

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._order import ranked_blocks
from fl_lightning.aggregators._survivors import surviving_shares
from fl_lightning.aggregators._threads import column_wise
from fl_lightning.registry import Tunable


def check_trimmed_mean(n_clients: int, n_byzantine: int) -> None:
    """Raise ValueError unless f >= 0 and C > 2f."""
    if n_byzantine < 0 or n_clients <= 2 * n_byzantine:
        raise ValueError(f"trimmed mean needs C > 2f, got C={n_clients}, f={n_byzantine}")


def trimmed_mean(updates_CD: Tensor, n_byzantine: int) -> Tensor:
    """Mean of the C - 2f middle values of every coordinate.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, how many values are cut on either side, with C > 2f.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f.

    Example:
        >>> trimmed_mean(torch.tensor([[1.0, 10.0], [2.0, -1.0], [3.0, 4.0], [4.0, 100.0]]), 1)
        tensor([2.5000, 7.0000])
    """
    check_trimmed_mean(len(updates_CD), n_byzantine)
    ranks = range(n_byzantine, len(updates_CD) - n_byzantine)

    def middle_mean(part_CD: Tensor) -> Tensor:
        mean_B = part_CD.new_empty(part_CD.shape[1])
        for columns, (first_B, *rest) in ranked_blocks(part_CD, ranks, ordered=False):
            sum_B = first_B.clone()
            for value_B in rest:
                sum_B += value_B
            mean_B[columns] = sum_B / len(ranks)
        return mean_B

    return column_wise(middle_mean, updates_CD)


class TrimmedMean(Aggregator):
    """Mean of every coordinate without its f smallest and f largest values; weights are ignored.

    The number cut on either side is either `n_byzantine` or `fraction` (of the rows, rounded down).
    """

    name: ClassVar[str] = "trimmed_mean"
    cites: ClassVar[tuple[str, ...]] = ("yin2018byzantine",)
    n_byzantine: Annotated[Byzantine | None, Tunable(0.05, 0.45)] = None
    fraction: float | None = Field(default=None, ge=0, lt=0.5)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.n_byzantine is None) == (self.fraction is None):
            raise ValueError(
                f"give either n_byzantine or fraction, got n_byzantine={self.n_byzantine}, fraction={self.fraction}"
            )
        return self

    def tolerated(self, n_clients: int) -> int:
        """How many values are cut on either side."""
        # The small offset keeps 0.29 * 100 = 28.999999999999996 from losing a row.
        return int((self.fraction or 0) * n_clients + 1e-9) if self.n_byzantine is None else self.n_byzantine

    def check(self, n_clients: int) -> None:
        """C > 2f."""
        check_trimmed_mean(n_clients, self.tolerated(n_clients))

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """Every row contributes somewhere."""
        everybody = torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device)
        return Aggregate(trimmed_mean(updates_CD, self.tolerated(len(updates_CD))), everybody)

    def shares(self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None) -> Tensor:
        """Share of the values that survive the cut."""
        cut = self.tolerated(len(updates_CD))
        return surviving_shares(updates_CD, cut, len(updates_CD) - cut - 1)
