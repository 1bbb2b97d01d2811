"""Geometric median: the point with the smallest (weighted) sum of distances to the updates.

References:
    Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE Transactions on Signal Processing
    2022, algorithm 2 (RFA, the smoothed Weiszfeld algorithm).
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate
from fl_lightning.aggregators._distances import from_products
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._mean import mean
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean

Start = Literal["medoid", "mean"]


def geometric_median(
    updates_CD: Tensor,
    *,
    weights_C: Tensor | None = None,
    nu: float = 1e-6,
    max_iter: int = 100,
    tol: float = 1e-6,
    start: Start = "medoid",
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
        start: `mean`: exact steps from the mean of the rows, as printed, which huge rows can move far away.

    Returns:
        `[D]` in the dtype of the updates.

    Example:
        >>> geometric_median(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])).round(decimals=4)
        tensor([0., 0.])
    """
    return mean(updates_CD, weiszfeld(Geometry(updates_CD), weights_C, nu, max_iter, tol, start)[0])


def weiszfeld(
    geometry: Geometry, weights_C: Tensor | None, nu: float, max_iter: int, tol: float, start: Start = "medoid"
) -> tuple[Tensor, Tensor]:
    """`[C]` shares of the rows in the geometric median and `[C]` their distances from it, both float64 on the CPU."""
    prior_C = torch.ones(len(geometry)) if weights_C is None else weights_C
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

    if start == "mean":
        return iterate(prior_C / prior_C.sum(), geometry.distances_to)
    squared_CC, _ = from_products(geometry.gram)  # good enough to choose a row
    medoid = int((squared_CC.sqrt() @ prior_C).argmin())
    products_CC = geometry.products_around(medoid)
    norms_C = products_CC.diagonal()
    start_C = norms_C.sqrt()
    if len(start_C) > 1:
        start_C[medoid] = start_C[torch.arange(len(start_C)) != medoid].min()

    def distances_by_products(shares_C: Tensor) -> Tensor:
        towards_C = products_CC @ shares_C
        return (norms_C - 2 * towards_C + shares_C @ towards_C).clamp(min=0).sqrt()

    shares_C, _ = iterate(weigh(start_C), distances_by_products)
    return iterate(shares_C, geometry.distances_to)


class GeometricMedian(WeightedMean):
    """Point with the smallest sum of distances to the updates, weighted where weights are given."""

    name: ClassVar[str] = "geometric_median"
    cites: ClassVar[tuple[str, ...]] = ("pillutla2022robust",)
    nu: float = Field(default=1e-6, gt=0)
    max_iter: int = Field(default=100, ge=1)
    tol: float = Field(default=1e-6, ge=0)
    start: Start = "medoid"

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """Rows with a positive weight contribute; the scores are the distances from the median."""
        shares_C, distances_C = weiszfeld(Geometry(updates_CD), weights_C, self.nu, self.max_iter, self.tol, self.start)
        dtype = torch.promote_types(updates_CD.dtype, torch.float32)
        kept_C = (shares_C > 0).to(updates_CD.device)
        return Aggregate(mean(updates_CD, shares_C), kept_C, distances_C.to(updates_CD.device, dtype))

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The shares after the last step."""
        return Weighed(*weiszfeld(geometry, weights_C, self.nu, self.max_iter, self.tol, self.start))
