"""Geometric median: the point with the smallest (weighted) sum of distances to the updates.

References:
    Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE Transactions on Signal Processing
    2022, algorithm 2 (RFA, the smoothed Weiszfeld algorithm).
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._distances import from_products, gram
from fl_lightning.aggregators._mean import mean
from fl_lightning.aggregators._threads import by_columns
from fl_lightning.registry import component

BLOCK_ENTRIES = 400_000  # a block and its difference from the median stay in cache


def geometric_median(
    updates_CD: Tensor, *, weights_C: Tensor | None = None, nu: float = 1e-6, max_iter: int = 100, tol: float = 1e-6
) -> Tensor:
    """Minimiser z of sum_i w_i |x_i - z| by the smoothed Weiszfeld iteration.

    z is always a mean of the rows with the shares beta_i, and one step sets beta_i proportional to w_i / max(nu,
    |x_i - z|). The iteration starts from the row with the smallest sum of distances, which arbitrary rows cannot
    move away, and runs on the C x C inner products measured from that row; then exact steps on the rows themselves
    follow until z stays where it is, usually one.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        weights_C: `[C]` non-negative, not all zero; None: equal.
        nu: smoothing, > 0, in the unit of the updates: distances below it count as nu.
        max_iter: largest number of steps, in either phase.
        tol: stop when a step moves z by at most this share of the (harmonic) mean distance of the rows.

    Returns:
        `[D]` in the dtype of the updates.

    Example:
        >>> geometric_median(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])).round(decimals=4)
        tensor([0., 0.])
    """
    return mean(updates_CD, weiszfeld(updates_CD, weights_C, nu, max_iter, tol)[0])


def weiszfeld(
    updates_CD: Tensor, weights_C: Tensor | None, nu: float, max_iter: int, tol: float
) -> tuple[Tensor, Tensor]:
    """`[C]` shares of the rows in the geometric median and `[C]` their distances from it, both float64 on the CPU."""
    prior_C = torch.ones(len(updates_CD)) if weights_C is None else weights_C
    prior_C = prior_C.to("cpu", torch.float64)

    def weigh(distances_C: Tensor) -> Tensor:
        shares_C = prior_C / distances_C.clamp(min=nu)
        return shares_C / shares_C.sum()

    def iterate(shares_C: Tensor, distances_to: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        for _ in range(max_iter):
            distances_C = distances_to(shares_C)
            before_C, shares_C = shares_C, weigh(distances_C)
            if (shares_C - before_C).abs() @ distances_C <= tol * (shares_C @ distances_C):
                break
        return shares_C, distances_C

    squared_CC, _ = from_products(gram(updates_CD))  # good enough to choose a row
    medoid = int((squared_CC.sqrt() @ prior_C).argmin())
    products_CC = gram(updates_CD, medoid)
    norms_C = products_CC.diagonal()
    start_C = norms_C.sqrt()
    if len(start_C) > 1:
        start_C[medoid] = start_C[torch.arange(len(start_C)) != medoid].min()

    def distances_by_products(shares_C: Tensor) -> Tensor:
        towards_C = products_CC @ shares_C
        return (norms_C - 2 * towards_C + shares_C @ towards_C).clamp(min=0).sqrt()

    shares_C, _ = iterate(weigh(start_C), distances_by_products)
    return iterate(shares_C, lambda shares_C: distances_to_mean(updates_CD, shares_C))


def distances_to_mean(updates_CD: Tensor, shares_C: Tensor) -> Tensor:
    """`[C]` float64 on the CPU: distances of the rows from their mean with the given shares, in one pass."""
    dtype = torch.promote_types(updates_CD.dtype, torch.float32)
    shares_C = shares_C.to(updates_CD.device, dtype)

    def part(columns: slice) -> Tensor:
        squared_C = torch.zeros(len(updates_CD), dtype=torch.float64)
        blocks = torch.split(updates_CD[:, columns], max(1, BLOCK_ENTRIES // len(updates_CD)), dim=1)
        for block_CB in (block.to(dtype) for block in blocks):
            away_CB = block_CB - shares_C @ block_CB
            norms_C = torch.linalg.vector_norm(away_CB, dim=1).cpu().double()
            if not bool(norms_C.isfinite().all()):  # float32 squares overflow beyond 1e19
                norms_C = torch.linalg.vector_norm(away_CB.cpu().double(), dim=1)
            squared_C += norms_C.square()
        return squared_C

    return torch.stack(by_columns(part, updates_CD.shape[1], updates_CD.device)).sum(0).sqrt()


@component
class GeometricMedian(Aggregator):
    """Point with the smallest sum of distances to the updates, weighted where weights are given."""

    name: ClassVar[str] = "geometric_median"
    nu: float = Field(default=1e-6, gt=0)
    max_iter: int = Field(default=100, ge=1)
    tol: float = Field(default=1e-6, ge=0)

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """Rows with a positive weight contribute; the scores are the distances from the median."""
        shares_C, distances_C = weiszfeld(updates_CD, weights_C, self.nu, self.max_iter, self.tol)
        dtype = torch.promote_types(updates_CD.dtype, torch.float32)
        kept_C = (shares_C > 0).to(updates_CD.device)
        return Aggregate(mean(updates_CD, shares_C), kept_C, distances_C.to(updates_CD.device, dtype))
