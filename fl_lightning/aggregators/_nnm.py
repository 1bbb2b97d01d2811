"""Nearest-neighbour mixing: every row becomes the mean of the C - f rows nearest to it.

References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing: a recipe for optimal Byzantine ML under
    heterogeneity", AISTATS 2023, algorithm 2.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._mixing import PreAggregator
from fl_lightning.aggregators._past import Past


def nnm_matrix(squared_CC: Tensor, n_byzantine: int) -> Tensor:
    """`[C, C]` W: 1 / (C - f) at the C - f nearest rows, the row itself first; among equals the lowest index first."""
    n_rows = len(squared_CC)
    check_majority("NNM", n_rows, n_byzantine)
    nearest = squared_CC.clone().fill_diagonal_(-1).sort(dim=1, stable=True).indices[:, : n_rows - n_byzantine]
    return torch.zeros_like(squared_CC).scatter_(1, nearest, 1 / (n_rows - n_byzantine))


def nnm(updates_CD: Tensor, n_byzantine: int) -> Tensor:
    """Every row replaced by the mean of the C - f rows nearest to it, itself included.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f.

    Returns:
        `[C, D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f.

    Example:
        >>> nnm(torch.tensor([[0.0], [1.0], [9.0]]), 1).flatten().tolist()
        [0.5, 0.5, 5.0]
    """
    geometry = Geometry(updates_CD)
    return geometry.mix(nnm_matrix(geometry.squared_distances, n_byzantine)).rows


class Nnm(PreAggregator):
    """Every row becomes the mean of the C - f nearest ones.

    Attributes:
        n_byzantine: f; None: the rule's.
    """

    name: ClassVar[str] = "nnm"
    cites: ClassVar[tuple[str, ...]] = ("allouah2023fixing",)
    needs_n_byzantine: ClassVar[bool] = True
    needs_distances: ClassVar[bool] = True
    n_byzantine: Byzantine | None = None

    def check(self, n_clients: int) -> None:
        """C > 2f."""
        check_majority("NNM", n_clients, self.n_byzantine or 0)

    def mix(self, geometry: Geometry, past: Past) -> Tensor:
        """No pass beyond that for the distances."""
        return nnm_matrix(geometry.squared_distances, self.n_byzantine or 0)
