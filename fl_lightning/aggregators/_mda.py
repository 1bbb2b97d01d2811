"""Minimum-diameter averaging: the mean of the C - f rows that lie closest together.

References:
    El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, "Genuinely distributed Byzantine machine learning", PODC 2020, section 3
    (MDA). Found here without trying all subsets: a set of diameter at most r is what
    a vertex cover of the pairs farther apart than r leaves.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._base import RoundRefusedError
from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._multi_krum import mean_of
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, chosen

MAX_NODES = 2_000_000
"""Nodes of a search for a vertex cover: about a minute."""


class Conflicts:
    """Pairs of rows of which one must go, as bit masks.

    Args:
        far_CC: `[C, C]` bool, symmetric.
        n_byzantine: f, for messages.
    """

    def __init__(self, far_CC: Tensor, n_byzantine: int):
        self.neighbours = [sum(1 << j for j, far in enumerate(row) if far) for row in far_CC.tolist()]
        self.n_byzantine, self.nodes = n_byzantine, 0

    def coverable(self, rows: int, budget: int) -> bool:
        """Whether dropping at most `budget` of the rows (a mask) ends all conflicts among them."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise RoundRefusedError(
                f"MDA's search took {MAX_NODES} steps with C={len(self.neighbours)}, f={self.n_byzantine}: use fewer"
            )
        degrees, best, most = 0, -1, 0
        left = rows
        while left:
            row = (left & -left).bit_length() - 1
            left &= left - 1
            degree = (self.neighbours[row] & rows).bit_count()
            degrees += degree
            if degree > most:
                best, most = row, degree
        if most == 0:
            return True
        if budget <= 0 or degrees > 2 * budget * most:  # even the busiest rows end too few conflicts
            return False
        near = self.neighbours[best] & rows
        if self.coverable(rows & ~(1 << best), budget - 1):
            return True
        return most <= budget and self.coverable(rows & ~near & ~(1 << best), budget - most)


def mda_rows(squared_CC: Tensor, n_byzantine: int) -> Tensor:
    """`[C - f]` indices of the rows whose largest distance is smallest; of several such sets the lexicographically first.

    Args:
        squared_CC: `[C, C]` squared distances.
        n_byzantine: f, with C > 2f.

    Raises:
        ValueError: C <= 2f, or the search takes more than about a minute.
    """
    n_rows = len(squared_CC)
    check_majority("MDA", n_rows, n_byzantine)
    radii = sorted(set(squared_CC.flatten().tolist()))
    low, high = 0, len(radii) - 1
    while low < high:
        middle = (low + high) // 2
        if Conflicts(squared_CC > radii[middle], n_byzantine).coverable((1 << n_rows) - 1, n_byzantine):
            high = middle
        else:
            low = middle + 1
    conflicts = Conflicts(squared_CC > radii[low], n_byzantine)
    kept: list[int] = []
    open_rows, budget = (1 << n_rows) - 1, n_byzantine
    for row in range(n_rows):
        if not open_rows >> row & 1:
            continue
        near = conflicts.neighbours[row] & open_rows
        after = open_rows & ~near & ~(1 << row)
        if near.bit_count() <= budget and conflicts.coverable(after, budget - near.bit_count()):
            kept.append(row)
            open_rows, budget = after, budget - near.bit_count()
        else:
            open_rows, budget = open_rows & ~(1 << row), budget - 1
    return torch.tensor(kept[: n_rows - n_byzantine])


def mda(updates_CD: Tensor, n_byzantine: int) -> Tensor:
    """Mean of the C - f rows with the smallest diameter.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f, or the search takes more than about a minute.

    Example:
        >>> mda(torch.tensor([[0.0], [1.0], [9.0]]), 1)
        tensor([0.5000])
    """
    return mean_of(updates_CD, mda_rows(Geometry(updates_CD).squared_distances, n_byzantine), None)


class Mda(WeightedMean):
    """Mean, weighted where weights are given, of the C - f updates with the smallest diameter."""

    name: ClassVar[str] = "mda"
    cites: ClassVar[tuple[str, ...]] = ("elmhamdi2020genuinely",)
    scores_tell: ClassVar[bool] = True
    products_tell: ClassVar[bool] = True
    permutation_invariant: ClassVar[bool] = False  # one pair decides the diameter: many sets have the same
    n_byzantine: Byzantine

    def check(self, n_clients: int) -> None:
        """C > 2f."""
        check_majority("MDA", n_clients, self.n_byzantine)

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """No scores."""
        rows = mda_rows(geometry.squared_distances, self.n_byzantine)
        return Weighed(chosen(len(geometry), rows, weights_C))
