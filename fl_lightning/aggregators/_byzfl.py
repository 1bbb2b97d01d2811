"""Any rule of ByzFL, behind any of its pre-aggregators.

References:
    González, Guerraoui, Pinot, Rizk, Stephan, Taïani, "ByzFL: Research Framework for Robust Federated Learning", 2025.
"""

from math import comb
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.aggregators import _byzfl_parts as byzfl
from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._byzantine import Byzantine
from fl_lightning.aggregators._past import Past

SUBSETS = {"MDA": 200_000, "SMEA": 5_000}
"""Rules that try every subset of C - f rows, and how many of them are a matter of seconds."""


def coefficients(rows_CD: Tensor, update_D: Tensor) -> Tensor:
    r"""`[C]` the mixture of the rows nearest to an aggregate, $\min_{c \ge 0} \|X^T c - a\|$, summing to 1.

    Args:
        rows_CD: `[C, D]` the rows X.
        update_D: `[D]` the aggregate a.

    Example:
        >>> coefficients(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.25, 1.5]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    from scipy.optimize import nnls  # a configuration is checked without scipy

    columns = torch.cat([rows_CD, update_D.unsqueeze(0)]).double().cpu().T
    triangle = torch.linalg.qr(columns, mode="r").R.numpy()
    shares_C = torch.from_numpy(nnls(triangle[:, :-1], triangle[:, -1])[0])
    total = shares_C.sum()
    return shares_C / total if total > 0 else torch.full_like(shares_C, 1 / len(shares_C))


class Byzfl(Aggregator):
    """A rule of ByzFL by its name there: `{name: byzfl, rule: TrMean, pre: [NNM], n_byzantine: 2}`.

    Computed in float64 and cast back. Weights are not used. From outside nobody can see which rows a rule kept: all count as
    kept, and their influence is that of the mixture of rows that comes nearest to the result.

    A rule with a memory (`CenteredClipping`) starts afresh every round, from 0, as ByzFL's does in its first.

    Attributes:
        rule: class of `byzfl.aggregators`, such as `TrMean`, `GeometricMedian`, `SMEA`.
        options: its parameters; f follows from `n_byzantine`.
        pre: ByzFL's own pre-aggregators in order, `NNM` or `{name: Bucketing, s: 2}`.
        n_byzantine: f, for the rule and every pre-aggregator that takes one.
    """

    name: ClassVar[str] = "byzfl"
    cites: ClassVar[tuple[str, ...]] = ("gonzalez2025byzfl",)
    uses_past: ClassVar[bool] = True

    rule: str = "TrMean"
    options: dict[str, Any] = Field(default_factory=dict)
    pre: tuple[str | dict[str, Any], ...] = ()
    n_byzantine: Byzantine = 0

    @model_validator(mode="after")
    def _known(self) -> "Byzfl":
        self._chain(0)
        return self

    def _chain(self, n_byzantine: int) -> list[Any]:
        steps = [byzfl.built("preaggregators", step, n_byzantine) for step in byzfl.parts(self.pre)]
        return [*steps, byzfl.built("aggregators", {"name": self.rule, **self.options}, n_byzantine)]

    @property
    def _names(self) -> list[str]:
        return [*(step["name"] for step in byzfl.parts(self.pre)), self.rule]

    @property
    def robust(self) -> bool:  # type: ignore[override]
        """All rules but the average, which its pre-aggregators make robust."""
        return self._names != ["Average"] and self._names != ["Bucketing", "Average"]

    @property
    def translation_equivariant(self) -> bool:  # type: ignore[override]
        """Not where norms are clipped."""
        return not {"Clipping", "ARC", "CenteredClipping", "CAF"} & set(self._names)

    @property
    def permutation_invariant(self) -> bool:  # type: ignore[override]
        """Not where rows are dealt into buckets, one is trusted, or the first of several equally good subsets is taken."""
        return not {"Bucketing", "MoNNA", "MDA"} & set(self._names)

    @property
    def returns_equal_rows(self) -> bool:  # type: ignore[override]
        """Not where norms are clipped to a fixed length."""
        return not {"Clipping", "ARC", "CenteredClipping"} & set(self._names)

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]
        """Not where norms are clipped to a fixed length, or distances smoothed by one."""
        return not {"Clipping", "CenteredClipping", "GeometricMedian"} & set(self._names)

    def check(self, n_clients: int) -> None:
        """C > 2f, and a number of subsets that can be tried."""
        f = self.n_byzantine
        if n_clients <= 2 * f:
            raise ValueError(f"ByzFL's {self.rule} needs C > 2f, got C={n_clients}, f={f}")
        subsets, limit = comb(n_clients, f), SUBSETS.get(self.rule)
        if limit is not None and subsets > limit:
            raise ValueError(
                f"ByzFL's {self.rule} tries all {subsets} subsets of C={n_clients} less f={f} rows, more than {limit}: "
                f"use {self.rule.lower()} of this project"
            )

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """The pre-aggregators, then the rule."""
        generator = (past or Past()).generator("byzfl")
        update_D = byzfl.applied(self._chain(self.n_byzantine), updates_CD, generator)
        return Aggregate(update_D, torch.ones(len(updates_CD), dtype=torch.bool, device=updates_CD.device))

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """Of the nearest mixture of rows."""
        update_D = (result or self.aggregate(updates_CD, weights_C, past=past)).update
        return coefficients(updates_CD, update_D).to(updates_CD)
