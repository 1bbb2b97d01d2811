"""Adaptive robust clipping: the longest rows are cut to the length of the longest that is surely not among them.

References:
    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive gradient clipping for robust federated learning", ICLR 2025,
    algorithm 2.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._mixing import PreAggregator
from fl_lightning.aggregators._past import Past


def arc_threshold(norms_C: Tensor, n_byzantine: int) -> tuple[float, int]:
    """The (k + 1)-th largest norm, and k = floor(2 f (C - f) / C)."""
    n_rows = len(norms_C)
    check_majority("ARC", n_rows, n_byzantine)
    k = 2 * n_byzantine * (n_rows - n_byzantine) // n_rows
    return float(norms_C.sort(descending=True).values[k]), k


def clipping_factors(norms_C: Tensor, max_norm: float) -> Tensor:
    """`[C]` min(1, max_norm / norm); 1 for a row of norm 0."""
    return torch.where(norms_C > max_norm, max_norm / norms_C.clamp(min=1e-300), 1.0)


def arc(updates_CD: Tensor, n_byzantine: int) -> Tensor:
    """The rows, none longer than the (k + 1)-th longest, k = floor(2 f (C - f) / C).

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f; 0 leaves the rows as they are.

    Returns:
        `[C, D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f.

    Example:
        >>> arc(torch.tensor([[1.0], [-2.0], [9.0]]), 1).flatten().tolist()
        [1.0, -2.0, 2.0]
    """
    geometry = Geometry(updates_CD)
    threshold, _ = arc_threshold(geometry.norms, n_byzantine)
    return geometry.scale(clipping_factors(geometry.norms, threshold)).rows


class Arc(PreAggregator):
    """Cuts the longest rows to the length of the longest that remains; use it before nnm.

    Attributes:
        n_byzantine: f; None: the rule's.
    """

    name: ClassVar[str] = "arc"
    cites: ClassVar[tuple[str, ...]] = ("allouah2025adaptive",)
    translation_equivariant: ClassVar[bool] = False
    bounds: ClassVar[bool] = True
    needs_n_byzantine: ClassVar[bool] = True
    n_byzantine: Byzantine | None = None

    def check(self, n_clients: int) -> None:
        """C > 2f."""
        check_majority("ARC", n_clients, self.n_byzantine or 0)

    def mix(self, geometry: Geometry, past: Past) -> Tensor:
        """A diagonal matrix."""
        threshold, _ = arc_threshold(geometry.norms, self.n_byzantine or 0)
        return clipping_factors(geometry.norms, threshold).diag()
