"""Bulyan: repeated Krum selects C - 2f updates, of which every coordinate averages the values nearest the median.

References:
    El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in Byzantium", ICML 2018,
    section 4. The fewer updates remain to select from, the fewer neighbours (n - f - 2 of the n that remain) count in
    Krum's score: at the end none would, and one is kept.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._distances import squared_distances
from fl_lightning.aggregators._krum import lowest, nearest_sums, verdict
from fl_lightning.aggregators._median import middle_ranks
from fl_lightning.aggregators._order import ranked_blocks
from fl_lightning.aggregators._survivors import survivors


class Window(NamedTuple):
    """In a block of columns, the values nearest the median: they are neighbours in sorted order."""

    columns: slice
    values: list[Tensor]
    first_B: Tensor


def check_bulyan(n_clients: int, n_byzantine: int) -> None:
    """Raise ValueError unless f >= 0 and C >= 4f + 3."""
    if n_byzantine < 0 or n_clients < 4 * n_byzantine + 3:
        raise ValueError(f"Bulyan needs C >= 4f + 3, got C={n_clients}, f={n_byzantine}")


def bulyan_selection(updates_CD: Tensor, n_byzantine: int, *, squared: bool = True) -> tuple[Tensor, Tensor]:
    """The C - 2f rows that Krum selects one after the other, from one distance matrix.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C >= 4f + 3.
        squared: sum squared distances or plain ones in Krum's score.

    Returns:
        `[C - 2f]` indices in the order of selection, and `[C]` Krum's scores of all rows in the first selection, on
        the CPU.

    Raises:
        ValueError: C < 4f + 3.
    """
    check_bulyan(len(updates_CD), n_byzantine)
    distances_CC = squared_distances(updates_CD)
    return bulyan_order(distances_CC if squared else distances_CC.sqrt(), n_byzantine)


def bulyan_order(distances_CC: Tensor, n_byzantine: int) -> tuple[Tensor, Tensor]:
    """`bulyan_selection` from the distances, `[C, C]` on the CPU."""
    n_clients = len(distances_CC)
    scores_C = nearest_sums(distances_CC, n_clients - n_byzantine - 2)
    left = lowest(scores_C, n_clients)  # so that ties, certain with one neighbour, do not depend on the rows' order
    selected = []
    for _ in range(n_clients - 2 * n_byzantine):
        scores = nearest_sums(distances_CC[left][:, left], max(1, len(left) - n_byzantine - 2))
        best = left[lowest(scores, 1)]
        selected.append(best)
        left = left[left != best]
    return torch.cat(selected), scores_C


def windows(updates_CD: Tensor, rows: Tensor, count: int) -> Iterator[Window]:
    """Among the given rows' sorted values the `count` nearest the median; of two equally near the smaller one."""
    middle, rows = middle_ranks(len(rows), lower=False), rows.to(updates_CD.device)
    for columns, values in ranked_blocks(updates_CD, range(len(rows)), rows=rows):
        median_B = (values[middle[0]] + values[middle[-1]]) / 2
        first_B = torch.zeros_like(median_B)
        for low_B, high_B in zip(values, values[count:], strict=False):
            first_B += (
                median_B - low_B > high_B - median_B
            )  # then the window moves up by one; once false, false for good
        yield Window(columns, values, first_B)


def bulyan(updates_CD: Tensor, n_byzantine: int, *, squared: bool = True) -> Tensor:
    """Mean, in every coordinate, of the C - 4f values nearest the median of the C - 2f selected ones.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C >= 4f + 3.
        squared: sum squared distances or plain ones in Krum's score.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C < 4f + 3.

    Example:
        >>> bulyan(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [99.0]]), 1)
        tensor([2.])
    """
    rows, _ = bulyan_selection(updates_CD, n_byzantine, squared=squared)
    return mean_near_median(updates_CD, rows, len(updates_CD) - 4 * n_byzantine)


def mean_near_median(updates_CD: Tensor, rows: Tensor, count: int) -> Tensor:
    """`[D]` mean of the `count` values nearest the median of the given rows, in every coordinate."""
    mean_D = updates_CD.new_empty(updates_CD.shape[1])
    for columns, values, first_B in windows(updates_CD, rows, count):
        sum_B = torch.zeros_like(first_B)
        for rank, value_B in enumerate(values):
            inside_B = (first_B <= rank) & (first_B > rank - count)
            sum_B += value_B.where(inside_B, 0)
        mean_D[columns] = sum_B / count
    return mean_D


def surviving_near_median(updates_CD: Tensor, rows: Tensor, count: int) -> Tensor:
    """`[C]` share of each row in the values that `mean_near_median` averages."""
    counts_C = torch.zeros(len(updates_CD), dtype=torch.float64)
    for columns, values, first_B in windows(updates_CD, rows, count):
        sorted_block = torch.stack(values)
        low_B, high_B = (sorted_block.gather(0, (first_B.long() + end)[None])[0] for end in (0, count - 1))
        counts_C[rows] += survivors(
            updates_CD[rows.to(updates_CD.device), columns], low_B, high_B, first_B, count
        ).cpu()
    return (counts_C / counts_C.sum()).to(updates_CD.device, torch.promote_types(updates_CD.dtype, torch.float32))


class Bulyan(Aggregator):
    """Mean of the values nearest the median of the updates that repeated Krum selects; weights are ignored."""

    name: ClassVar[str] = "bulyan"
    cites: ClassVar[tuple[str, ...]] = ("elmhamdi2018hidden",)
    n_byzantine: Byzantine
    squared: bool = True

    def check(self, n_clients: int) -> None:
        """C >= 4f + 3."""
        check_bulyan(n_clients, self.n_byzantine)

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """The C - 2f selected rows are kept; the scores are Krum's before the first selection."""
        rows, scores_C = bulyan_selection(updates_CD, self.n_byzantine, squared=self.squared)
        update_D = mean_near_median(updates_CD, rows, len(updates_CD) - 4 * self.n_byzantine)
        return Aggregate(update_D, *verdict(updates_CD, rows, scores_C))

    def shares(self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None) -> Tensor:
        """Share of the values near the median, 0 for rows that were not selected."""
        if result is None:
            rows, _ = bulyan_selection(updates_CD, self.n_byzantine, squared=self.squared)
        else:
            rows = result.kept.cpu().nonzero().flatten()
        return surviving_near_median(updates_CD, rows, len(updates_CD) - 4 * self.n_byzantine)
