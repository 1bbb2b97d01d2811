"""Multi-Krum: the mean of the updates with the best Krum scores.

References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient
    descent", NeurIPS 2017, section 5. The paper leaves the number m of averaged updates open; C - f is the largest
    that can be honest.
"""

from dataclasses import replace
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate
from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._krum import check_krum, krum_scores, lowest, scores_of, verdict
from fl_lightning.aggregators._mean import shares
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, chosen, influence_of


def check_multi_krum(n_clients: int, n_byzantine: int, m: int | None) -> None:
    """Raise ValueError unless C > 2f + 2 and 1 <= m <= C - f."""
    check_krum(n_clients, n_byzantine, "Multi-Krum")
    if m is not None and not 1 <= m <= n_clients - n_byzantine:
        raise ValueError(f"Multi-Krum needs 1 <= m <= C - f, got m={m}, C={n_clients}, f={n_byzantine}")


def multi_krum(
    updates_CD: Tensor,
    n_byzantine: int,
    *,
    m: int | None = None,
    squared: bool = True,
    weights_C: Tensor | None = None,
) -> Tensor:
    """Mean of the m rows with the lowest Krum scores.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f + 2.
        m: how many rows are averaged, 1 to C - f; None: C - f.
        squared: sum squared distances or plain ones.
        weights_C: `[C]` weights of the mean; the selection ignores them.

    Returns:
        `[D]` the mean.

    Raises:
        ValueError: C <= 2f + 2, or m out of range.

    Example:
        >>> multi_krum(torch.tensor([[0.0], [1.0], [2.0], [3.0], [99.0]]), 1)
        tensor([1.5000])
    """
    check_multi_krum(len(updates_CD), n_byzantine, m)
    scores_C = krum_scores(updates_CD, n_byzantine, squared=squared)
    return mean_of(updates_CD, lowest(scores_C, m or len(updates_CD) - n_byzantine), weights_C)


def mean_of(updates_CD: Tensor, rows: Tensor, weights_C: Tensor | None) -> Tensor:
    """Mean of some rows, reading only these; equal weights if theirs are not given or all zero."""
    weights = torch.ones(len(rows)) if weights_C is None else weights_C[rows.to(weights_C.device)]
    total = torch.zeros_like(updates_CD[0], dtype=torch.promote_types(updates_CD.dtype, torch.float32))
    for row, share in zip(rows.tolist(), shares(weights).tolist(), strict=True):
        total.add_(updates_CD[row], alpha=share)
    return total.to(updates_CD.dtype)


class MultiKrum(WeightedMean):
    """Mean, weighted where weights are given, of the C - f updates with the best Krum scores."""

    name: ClassVar[str] = "multi_krum"
    cites: ClassVar[tuple[str, ...]] = ("blanchard2017machine",)
    scores_tell: ClassVar[bool] = True
    n_byzantine: Byzantine
    m: int | None = Field(default=None, ge=1)
    squared: bool = True

    def check(self, n_clients: int) -> None:
        """C > 2f + 2 and m <= C - f."""
        check_multi_krum(n_clients, self.n_byzantine, self.m)

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """The m averaged rows are kept; the scores are Krum's."""
        scores_C = krum_scores(updates_CD, self.n_byzantine, squared=self.squared)
        best = lowest(scores_C, self.m or len(updates_CD) - self.n_byzantine)
        return Aggregate(mean_of(updates_CD, best, weights_C), *verdict(updates_CD, best, scores_C))

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The weights of the m best rows."""
        scores_C = scores_of(geometry.squared_distances, self.n_byzantine, self.squared)
        best = lowest(scores_C, self.m or len(scores_C) - self.n_byzantine)
        return Weighed(chosen(len(scores_C), best, weights_C), scores_C)

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """The weights among the kept rows."""
        kept_C = (result or self.aggregate(updates_CD, weights_C)).kept
        if weights_C is None:
            return kept_C / kept_C.sum()
        return influence_of(chosen(len(updates_CD), kept_C.cpu().nonzero().flatten(), weights_C), updates_CD)

    def without(self, removed: int) -> Self:
        """Also averages fewer rows once more are gone than the rule tolerates."""
        if self.m is None or removed <= self.n_byzantine:
            return super().without(removed)
        return replace(self, n_byzantine=0, m=max(1, self.m - (removed - self.n_byzantine)))
