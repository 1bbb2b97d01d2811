"""Bucketing: the rows are shuffled and averaged in small groups, which makes honest rows more alike.

References:
    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing", ICLR 2022, algorithm 1.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._mixing import PreAggregator
from fl_lightning.aggregators._past import Past
from fl_lightning.registry import Tunable


def bucketing_matrix(order: Tensor, s: int) -> Tensor:
    """`[R, C]` W: the means of s rows each in the given order, R = ceil(C / s); the last bucket may be smaller."""
    buckets = torch.split(order, s)
    matrix = torch.zeros(len(buckets), len(order), dtype=torch.float64)
    for row, bucket in enumerate(buckets):
        matrix[row, bucket] = 1 / len(bucket)
    return matrix


def bucketing(updates_CD: Tensor, s: int, *, order: Tensor) -> Tensor:
    """Means of s rows each, in the given order.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        s: rows a bucket, >= 1.
        order: `[C]` a permutation of the rows.

    Returns:
        `[ceil(C / s), D]` in the dtype of the updates.

    Example:
        >>> bucketing(torch.tensor([[0.0], [1.0], [9.0]]), 2, order=torch.tensor([2, 0, 1])).flatten().tolist()
        [4.5, 1.0]
    """
    return Geometry(updates_CD).mix(bucketing_matrix(order, s)).rows


class Bucketing(PreAggregator):
    """Averages the rows in random groups of `s`; f malicious rows then spoil up to f of the ceil(C / s) groups.

    Attributes:
        s: rows a group.
        n_byzantine: f; None: the rule's. With it, more than 2f groups are asked for.
    """

    name: ClassVar[str] = "bucketing"
    cites: ClassVar[tuple[str, ...]] = ("karimireddy2022byzantine",)
    permutation_invariant: ClassVar[bool] = False
    scores_follow: ClassVar[bool] = False
    s: Annotated[int, Tunable(1, 5, integer=True)] = Field(default=2, ge=1)
    n_byzantine: Byzantine | None = None

    def rows(self, n_clients: int) -> int:
        """ceil(C / s)."""
        return -(-n_clients // self.s)

    def check(self, n_clients: int) -> None:
        """More than 2f groups."""
        groups, f = self.rows(n_clients), self.n_byzantine or 0
        if groups <= 2 * f:
            raise ValueError(
                f"bucketing needs ceil(C / s) > 2f, got C={n_clients}, s={self.s}, f={f}: {groups} groups; lower s"
            )

    def mix(self, geometry: Geometry, past: Past) -> Tensor:
        """One permutation a round."""
        return bucketing_matrix(torch.randperm(len(geometry), generator=past.generator("bucketing")), self.s)

    def sizes(self, matrix_RC: Tensor) -> Tensor:
        """The last group may be smaller."""
        return (matrix_RC > 0).sum(1).double()
