"""Divide-and-conquer: rows far out along the direction of largest variance go, in random columns, several times.

References:
    Shejwalkar, Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for federated learning",
    NDSS 2021, algorithm 2.
"""

from collections.abc import Sequence
from math import ceil
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._krum import lowest
from fl_lightning.aggregators._multi_krum import mean_of
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, chosen
from fl_lightning.registry import Tunable


class Outliers(NamedTuple):
    """What remains.

    Attributes:
        rows: indices of the rows that stay, ascending.
        scores: `[iterations, C]` squared projections on the direction of largest variance.
    """

    rows: Tensor
    scores: Tensor


def removed_by_dnc(n_byzantine: int, filter_share: float) -> int:
    """ceil(c f), where 1.1 * 10 = 11.000000000000002 is 11."""
    return ceil(filter_share * n_byzantine - 1e-9)


def check_dnc(n_clients: int, n_byzantine: int, filter_share: float) -> None:
    """Raise ValueError unless C > 2f and a row stays in every iteration."""
    if n_byzantine < 0 or n_clients <= 2 * n_byzantine or removed_by_dnc(n_byzantine, filter_share) >= n_clients:
        raise ValueError(
            f"DnC needs C > 2f and filter_share * f < C, got C={n_clients}, f={n_byzantine}, filter_share={filter_share}"
        )


def dnc_rows(geometry: Geometry, n_byzantine: int, columns: Sequence[Tensor], filter_share: float = 1.0) -> Outliers:
    """The rows that are among the C - ceil(c f) least outlying in every iteration.

    Args:
        geometry: of C rows.
        n_byzantine: f.
        columns: numbers of the columns that each iteration looks at.
        filter_share: c, how many times f rows go in an iteration.

    Returns:
        The rows (those that stayed most often where no row stayed always), and the scores.
    """
    n_rows = len(geometry)
    check_dnc(n_rows, n_byzantine, filter_share)
    survived_C, scores = torch.zeros(n_rows), []
    for index in columns:
        part = geometry.columns(index)
        part = part - part.mean(0)
        values, vectors = torch.linalg.eigh(part @ part.T)
        scores_C = values[-1].clamp(min=0) * vectors[:, -1].square()  # <d_i, v>^2 = (sigma u_i)^2
        survived_C[lowest(scores_C, n_rows - removed_by_dnc(n_byzantine, filter_share))] += 1
        scores.append(scores_C)
    return Outliers((survived_C == survived_C.max()).nonzero().flatten(), torch.stack(scores))


def dnc(updates_CD: Tensor, n_byzantine: int, columns: Sequence[Tensor], *, filter_share: float = 1.0) -> Tensor:
    """Mean of the rows that stay in every iteration.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f.
        columns: numbers of the columns that each iteration looks at.
        filter_share: how many times f rows go in an iteration.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f, or no row would stay.

    Example:
        >>> dnc(torch.tensor([[0.0], [1.0], [2.0], [99.0]]), 1, [torch.tensor([0])])
        tensor([1.])
    """
    return mean_of(updates_CD, dnc_rows(Geometry(updates_CD), n_byzantine, columns, filter_share).rows, None)


class Dnc(WeightedMean):
    """Mean, weighted where weights are given, of the updates that are no outliers along the direction of largest variance.

    Attributes:
        n_byzantine: f.
        iterations: how often rows are removed, each time in other columns.
        columns: how many columns are drawn; all where there are fewer.
        filter_share: how many times f rows are removed in an iteration.
    """

    name: ClassVar[str] = "dnc"
    cites: ClassVar[tuple[str, ...]] = ("shejwalkar2021manipulating",)
    n_byzantine: Byzantine
    iterations: int = Field(default=1, ge=1)
    columns: int = Field(default=10_000, ge=1)
    filter_share: Annotated[float, Tunable(0.5, 1.5)] = Field(default=1.0, gt=0, le=1.5)

    def check(self, n_clients: int) -> None:
        """C > 2f, and a row stays."""
        check_dnc(n_clients, self.n_byzantine, self.filter_share)

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The scores are the largest over the iterations, each divided by its median."""
        random, dimension = past.generator("dnc columns"), geometry.dimension
        count = min(self.columns, dimension)
        drawn = [torch.randperm(dimension, generator=random)[:count].sort().values for _ in range(self.iterations)]
        rows, scores = dnc_rows(geometry, self.n_byzantine, drawn, self.filter_share)
        relative = scores / scores.median(1, keepdim=True).values.clamp(min=1e-300)
        return Weighed(chosen(len(geometry), rows, weights_C), relative.amax(0).clamp(max=1e300))
