"""Rules whose result is a weighted sum of the rows, with coefficients that follow from the rows' geometry."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator, check_weights
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._past import Past


class Weighed(NamedTuple):
    """What a rule makes of the geometry.

    Attributes:
        coefficients: `[C]`, or `[C + 1]` where the last belongs to `past.reference_D`.
        scores: `[C]` larger = more suspicious, or None.
    """

    coefficients: Tensor
    scores: Tensor | None = None


class WeightedMean(Aggregator, ABC):
    """A rule that is a weighted sum of the rows: two passes over them, one to measure and one to sum.

    Attributes:
        products_tell: with `scores_tell`, whether it measures all inner products anyway, which tell of rows with NaN or Inf.
    """

    uses_past: ClassVar[bool] = True
    products_tell: ClassVar[bool] = False

    @abstractmethod
    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """Coefficients, float64 on the CPU, and scores.

        Args:
            geometry: of finite rows whose number has been checked.
            past: what went before.
            weights_C: `[C]` sample counts, or None.
        """

    def _as_if_finite(self, updates_CD: Tensor, weights_C: Tensor | None, past: Past | None) -> Aggregate | None:
        """The aggregate if the rule can handle all rows and their inner products, or its scores, say that they are finite."""
        if not self.products_tell:
            return super()._as_if_finite(updates_CD, weights_C, past)
        try:
            self.check(len(updates_CD))
        except ValueError:
            return None
        geometry = Geometry(updates_CD)
        finite = bool(geometry.gram.diagonal().isfinite().all())
        return self.combine(geometry, weights_C, past or Past()) if finite else None

    def coefficients(self, geometry: Geometry, past: Past | None = None, weights_C: Tensor | None = None) -> Tensor:
        """`[C]` float64 share of each row in the update; `[C + 1]` when the last belongs to `past.reference_D`."""
        return self.weigh(geometry, past or Past(), weights_C).coefficients

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """The weighted sum; rows with a coefficient are kept."""
        return self.combine(Geometry(updates_CD), weights_C, past or Past())

    def on(self, geometry: Geometry, weights_C: Tensor | None = None, *, past: Past | None = None) -> Aggregate:
        """The weighted sum; where the rows exist already, exactly what the call gives."""
        return on_unmade(self, geometry, weights_C, past) or super().on(geometry, weights_C, past=past)

    def influence_on(
        self, geometry: Geometry, weights_C: Tensor | None, result: Aggregate, *, past: Past | None = None
    ) -> Tensor:
        """|c_i| / sum |c| over the rows."""
        if geometry.made:
            return super().influence_on(geometry, weights_C, result, past=past)
        coefficients = self.resolved(len(geometry)).coefficients(geometry, past, weights_C)[: len(geometry)]
        return normalised(coefficients).to(result.update.device)

    def combine(self, geometry: Geometry, weights_C: Tensor | None, past: Past) -> Aggregate:
        """`aggregate` on rows whose geometry is known, perhaps not yet made themselves."""
        coefficients, scores = self.weigh(geometry, past, weights_C)
        return combined(geometry, coefficients, scores, past)

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """|c_i| / sum |c| over the rows."""
        coefficients = self.coefficients(Geometry(updates_CD), past, weights_C)
        return influence_of(coefficients, updates_CD)


class Combining(Protocol):
    """A rule that can aggregate rows which are not made."""

    def resolved(self, n_clients: int) -> Self:
        """See `Aggregator`."""

    def check(self, n_clients: int) -> None:
        """See `Aggregator`."""

    def combine(self, geometry: Geometry, weights_C: Tensor | None, past: Past) -> Aggregate:
        """See `WeightedMean`."""


def on_unmade(rule: Combining, geometry: Geometry, weights_C: Tensor | None, past: Past | None) -> Aggregate | None:
    """The aggregate of rows that are not made yet; None where they exist."""
    if geometry.made:
        return None
    if weights_C is not None:
        check_weights(weights_C)
    rule = rule.resolved(len(geometry))
    rule.check(len(geometry))
    return rule.combine(geometry, weights_C, past or Past())


def combined(geometry: Geometry, coefficients: Tensor, scores: Tensor | None, past: Past) -> Aggregate:
    """The weighted sum of the rows, and of the reference where it has a coefficient, too."""
    n_rows = len(geometry)
    update_D = geometry.weighted_sum(coefficients[:n_rows])
    if len(coefficients) > n_rows and past.reference_D is not None:
        update_D = update_D + past.reference_D.to(update_D) * float(coefficients[n_rows])
    dtype = torch.promote_types(update_D.dtype, torch.float32)
    scores = None if scores is None else scores.to(update_D.device, dtype)
    return Aggregate(update_D, (coefficients[:n_rows] != 0).to(update_D.device), scores)


def influence_of(coefficients: Tensor, updates_CD: Tensor) -> Tensor:
    """`[C]` |c_i| / sum |c| on the device of the updates, at least float32."""
    dtype = torch.promote_types(updates_CD.dtype, torch.float32)
    return normalised(coefficients[: len(updates_CD)]).to(updates_CD.device, dtype)


def normalised(coefficients_C: Tensor) -> Tensor:
    """`[C]` absolute values divided by their sum; equal shares where all are 0."""
    size_C = coefficients_C.abs()
    total = float(size_C.sum())
    return size_C / total if total > 0 else torch.full_like(size_C, 1 / len(size_C))


def chosen(n_rows: int, rows: Tensor, weights_C: Tensor | None) -> Tensor:
    """`[C]` coefficients of the mean of some rows, weighted where weights are given and any of theirs is positive."""
    coefficients_C = torch.zeros(n_rows, dtype=torch.float64)
    weights = torch.ones(len(rows)) if weights_C is None else weights_C[rows.to(weights_C.device)]
    weights = weights.cpu().double()
    coefficients_C[rows] = normalised(weights)
    return coefficients_C
