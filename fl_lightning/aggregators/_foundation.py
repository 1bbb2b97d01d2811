"""FoundationFL: copies of the row that is farthest from both extremes join the rows, before a trimmed mean or a median.

References:
    Fang, Nabavirazavi, Liu, Sun, Iyengar, Yang, "Do we really need to design new Byzantine-robust aggregation rules?", NDSS 2025,
    algorithm 1.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._mixing import PreAggregator
from fl_lightning.aggregators._past import Past


def foundation_scores(geometry: Geometry) -> Tensor:
    """`[C]` float64: distance of every row from the nearer of the coordinate-wise maximum and minimum of all rows."""
    rows = geometry.rows
    return torch.minimum(geometry.distances_from(rows.amax(0)), geometry.distances_from(rows.amin(0)))


def foundation_matrix(scores_C: Tensor, copies: int) -> Tensor:
    """`[C + m, C]` W: the rows, then m times the row with the largest score; among equals the lowest index."""
    every = torch.eye(len(scores_C), dtype=torch.float64)
    return torch.cat([every, every[int(scores_C.argmax())].expand(copies, -1)])


def foundation(updates_CD: Tensor, copies: int) -> Tensor:
    """The rows and copies of the one that is farthest from both extremes.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        copies: m >= 0.

    Returns:
        `[C + m, D]` in the dtype of the updates.

    Example:
        >>> foundation(torch.tensor([[0.0], [1.2], [2.0]]), 1).flatten().tolist()
        [0.0, 1.2000000476837158, 2.0, 1.2000000476837158]
    """
    geometry = Geometry(updates_CD)
    return geometry.mix(foundation_matrix(foundation_scores(geometry), copies)).rows


class Foundation(PreAggregator):
    """Adds copies of the row farthest from both extremes, which an attacker's row often is: see `copies`.

    Attributes:
        copies: m; None: half of the rows, rounded up. With f malicious rows the copies stay a minority for m < C - 2f only
            (before a median); a trimmed mean must cut f + m.
        n_byzantine: f, for the warning about `copies`; None: the rule's.
    """

    name: ClassVar[str] = "foundation"
    cites: ClassVar[tuple[str, ...]] = ("fang2025do",)
    copies: int | None = Field(default=None, ge=0)
    n_byzantine: Byzantine | None = None

    def count(self, n_clients: int) -> int:
        """M."""
        return -(-n_clients // 2) if self.copies is None else self.copies

    def rows(self, n_clients: int) -> int:
        """C + m."""
        return n_clients + self.count(n_clients)

    def extra(self, n_clients: int) -> int:
        """The copied row may be malicious."""
        return self.count(n_clients)

    def caution(self, n_clients: int, n_byzantine: int | None) -> str | None:
        """Copies of a malicious row can be a majority."""
        copies = self.count(n_clients)
        if n_byzantine is None or copies < n_clients - 2 * n_byzantine:
            return None
        return (
            f"foundation copies a row that may be malicious: {copies} copies and f={n_byzantine} of C={n_clients} rows are a "
            f"majority; copies < C - 2f = {n_clients - 2 * n_byzantine} are not"
        )

    def mix(self, geometry: Geometry, past: Past) -> Tensor:
        """Two passes for the extremes and distances."""
        return foundation_matrix(foundation_scores(geometry), self.count(len(geometry)))

    def figures(self, matrix_RC: Tensor, poisoned_C: Tensor) -> Mapping[str, float]:
        """`copied_malicious`: whether the copied row is an attacker's."""
        copies = matrix_RC[matrix_RC.shape[1] :]
        return {"copied_malicious": float(bool(poisoned_C[int(copies[0].argmax())]))} if len(copies) else {}
