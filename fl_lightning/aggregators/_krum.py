"""Krum: the update that lies closest to its C - f - 2 nearest others.

References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient
    descent", NeurIPS 2017, section 3 (squared distances).
    Wei, Li, Ding, Ma, Su, Zhang, Poor, "Covert model poisoning against federated learning: algorithm design and
    optimization", IEEE TDSC 2023, uses plain distances: `squared=False`. The choice can differ.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate
from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._distances import squared_distances
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, chosen


def check_krum(n_clients: int, n_byzantine: int, rule: str = "Krum") -> None:
    """Raise ValueError unless f >= 0 and C > 2f + 2."""
    if n_byzantine < 0 or n_clients <= 2 * n_byzantine + 2:
        raise ValueError(f"{rule} needs C > 2f + 2, got C={n_clients}, f={n_byzantine}")


def nearest_sums(distances_CC: Tensor, neighbours: int) -> Tensor:
    """`[C]` sum of every row's distances to its nearest others; infinite distances mark absent rows."""
    others_CC = distances_CC.clone().fill_diagonal_(torch.inf)
    return others_CC.sort(1).values[:, :neighbours].sum(1)


def krum_scores(updates_CD: Tensor, n_byzantine: int, *, squared: bool = True) -> Tensor:
    """Krum's score of every row: the sum of its distances to the C - f - 2 nearest other rows.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f + 2.
        squared: sum squared distances (as in the original paper) or plain ones.

    Returns:
        `[C]` float64 on the CPU; smaller is better.

    Raises:
        ValueError: C <= 2f + 2.

    Example:
        >>> krum_scores(torch.tensor([[0.0], [1.0], [3.0], [9.0]]), 0)
        tensor([ 10.,   5.,  13., 100.], dtype=torch.float64)
    """
    check_krum(len(updates_CD), n_byzantine)
    return scores_of(squared_distances(updates_CD), n_byzantine, squared)


def scores_of(squared_CC: Tensor, n_byzantine: int, squared: bool) -> Tensor:
    """`krum_scores` from the squared distances."""
    distances_CC = squared_CC if squared else squared_CC.sqrt()
    return nearest_sums(distances_CC, len(distances_CC) - n_byzantine - 2)


def lowest(scores_C: Tensor, count: int) -> Tensor:
    """`[count]` indices of the lowest scores, in ascending order of score; among equals the lowest index first."""
    return scores_C.sort(stable=True).indices[:count]


def krum(updates_CD: Tensor, n_byzantine: int, *, squared: bool = True) -> Tensor:
    """The row with the lowest score of `krum_scores`; among equals the one with the lowest index.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f + 2.
        squared: sum squared distances (as in the original paper) or plain ones.

    Returns:
        `[D]` a copy of the selected row.

    Raises:
        ValueError: C <= 2f + 2.

    Example:
        >>> krum(torch.tensor([[0.0], [1.0], [2.0], [3.0], [99.0]]), 1)
        tensor([1.])
    """
    best = lowest(krum_scores(updates_CD, n_byzantine, squared=squared), 1)
    return updates_CD[int(best)].clone()


def verdict(updates_CD: Tensor, rows: Tensor, scores_C: Tensor) -> tuple[Tensor, Tensor]:
    """`kept` and `scores` of an `Aggregate`, on the device of the updates."""
    kept_C = torch.zeros(len(updates_CD), dtype=torch.bool).index_fill_(0, rows, True)
    dtype = torch.promote_types(updates_CD.dtype, torch.float32)
    return kept_C.to(updates_CD.device), scores_C.to(updates_CD.device, dtype)


class Krum(WeightedMean):
    """The one update closest to its C - f - 2 nearest others; weights are ignored."""

    name: ClassVar[str] = "krum"
    cites: ClassVar[tuple[str, ...]] = ("blanchard2017machine",)
    scores_tell: ClassVar[bool] = True
    n_byzantine: Byzantine
    squared: bool = True

    def check(self, n_clients: int) -> None:
        """C > 2f + 2."""
        check_krum(n_clients, self.n_byzantine)

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """One row is kept, and copied; the scores are Krum's."""
        scores_C = krum_scores(updates_CD, self.n_byzantine, squared=self.squared)
        best = lowest(scores_C, 1)
        return Aggregate(updates_CD[int(best)].clone(), *verdict(updates_CD, best, scores_C))

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """All on the best row."""
        scores_C = scores_of(geometry.squared_distances, self.n_byzantine, self.squared)
        return Weighed(chosen(len(scores_C), lowest(scores_C, 1), None), scores_C)

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """All on the kept row."""
        kept_C = (result or self.aggregate(updates_CD, weights_C)).kept
        return kept_C / kept_C.sum()
