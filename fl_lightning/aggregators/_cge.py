"""Comparative gradient elimination: the mean of the C - f shortest rows.

References:
    Gupta, Liu, Vaidya, "Byzantine fault-tolerant distributed machine learning with norm-based comparative gradient elimination",
    DSN-W 2021, algorithm 1.
"""

from typing import ClassVar

from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._krum import lowest
from fl_lightning.aggregators._multi_krum import mean_of
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, chosen


def cge(updates_CD: Tensor, n_byzantine: int) -> Tensor:
    """Mean of the C - f rows with the smallest norms; among equals the lowest index first.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f.

    Example:
        >>> import torch
        >>> cge(torch.tensor([[1.0], [2.0], [-9.0]]), 1)
        tensor([1.5000])
    """
    check_majority("CGE", len(updates_CD), n_byzantine)
    return mean_of(updates_CD, lowest(Geometry(updates_CD).norms, len(updates_CD) - n_byzantine), None)


class Cge(WeightedMean):
    """Mean, weighted where weights are given, of the C - f shortest updates: a shorter attacker always stays."""

    name: ClassVar[str] = "cge"
    cites: ClassVar[tuple[str, ...]] = ("gupta2021byzantine",)
    scores_tell: ClassVar[bool] = True
    translation_equivariant: ClassVar[bool] = False
    n_byzantine: Byzantine

    def check(self, n_clients: int) -> None:
        """C > 2f."""
        check_majority("CGE", n_clients, self.n_byzantine)

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The scores are the norms."""
        norms_C = geometry.norms
        shortest = lowest(norms_C, len(norms_C) - self.n_byzantine)
        return Weighed(chosen(len(norms_C), shortest, weights_C), norms_C)
