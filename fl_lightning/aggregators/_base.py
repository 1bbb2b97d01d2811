"""What an aggregator is: the server's rule that turns the updates of a round into one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fl_lightning.aggregators._byzantine import Auto, Share, Tolerant, assumed
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._past import Past
from fl_lightning.registry import Component


class Aggregate(NamedTuple):
    """Result of an aggregation.

    Attributes:
        update: `[D]` the aggregated update.
        kept: `[C]` bool, whose rows contributed.
        scores: `[C]` the rule's scores (larger = more suspicious), or None where it has none.
    """

    update: Tensor
    kept: Tensor
    scores: Tensor | None = None


class RoundRefusedError(ValueError):
    """The rule cannot do these rows in reasonable time: the round is skipped."""


class Aggregator(Tolerant, Component, ABC):
    """A rule `[C, D] -> [D]`; calling it checks the input and leaves rows with NaN or Inf out.

    A rule that tolerates `n_byzantine` rows counts every left-out row as one of them.

    Attributes:
        robust: whether the result stays near the honest rows when the `tolerated` number of others is arbitrary.
        translation_equivariant: whether moving every row by the same vector moves the result by it.
        permutation_invariant: whether the order of the rows does not matter (but for ties).
        returns_equal_rows: whether rows that are all equal are the result.
        homogeneous: whether rows that are all scaled alike scale the result.
        uses_past: whether `aggregate` and `shares` take the keyword `past`.
        needs_samples: whether it needs the server's own update, `past.trusted`.
        scores_tell: whether a row with NaN or Inf has an infinite score and leaves the others' finite: looking for such rows
            beforehand, one more pass over the matrix, is then left out.
    """

    robust: ClassVar[bool] = True
    translation_equivariant: ClassVar[bool] = True
    permutation_invariant: ClassVar[bool] = True
    returns_equal_rows: ClassVar[bool] = True
    homogeneous: ClassVar[bool] = True
    uses_past: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False
    scores_tell: ClassVar[bool] = False

    def __call__(self, updates_CD: Tensor, weights_C: Tensor | None = None, *, past: Past | None = None) -> Aggregate:
        """Aggregate the updates of a round.

        Args:
            updates_CD: `[C, D]` one update a row, floating point; not modified.
            weights_C: `[C]` non-negative weights (sample counts); None: equal. Rules that take no weights say so.
            past: what went before, for the rules that use it; None: nothing did.

        Returns:
            The aggregate; `kept` and `scores` have one entry for every row of the input.

        Raises:
            ValueError: wrong shapes, no finite row, or too few rows for the rule.
        """
        check_input(updates_CD, weights_C)
        rule = self.resolved(len(updates_CD))
        if rule.scores_tell and (result := rule._as_if_finite(updates_CD, weights_C, past)):
            return result
        finite_C = finite_rows(updates_CD)
        if bool(finite_C.all()):
            rule.check(len(updates_CD))
            return rule.aggregate(updates_CD, weights_C, **rule._told(past))
        rule, rows_CD, weights_C = rule._without_rows(~finite_C, updates_CD, weights_C)
        part = rule.aggregate(rows_CD, weights_C, **rule._told(past))
        scores_C = None if part.scores is None else spread(part.scores, finite_C, fill=torch.inf)
        return Aggregate(part.update, spread(part.kept, finite_C, fill=False), scores_C)

    def _told(self, past: Past | None) -> dict[str, Any]:
        """The keyword `past` for the rules that take it: others, also in outside packages, need not know it."""
        return {"past": past or Past()} if self.uses_past else {}

    def _as_if_finite(self, updates_CD: Tensor, weights_C: Tensor | None, past: Past | None) -> Aggregate | None:
        """The aggregate if the rule can handle all rows and its scores say that they are finite."""
        try:
            self.check(len(updates_CD))
        except ValueError:
            return None
        result = self.aggregate(updates_CD, weights_C, **self._told(past))
        return result if result.scores is not None and bool(result.scores.isfinite().all()) else None

    @abstractmethod
    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """The rule itself, on finite rows whose number has been checked; takes `past`, too, where `uses_past` says so."""

    def before_mixing(self, geometry: Geometry, past: Past) -> tuple["Aggregator", Past]:
        """The rule and its past before pre-aggregators mix the rows: what is trusted stays unmixed."""
        return self, past

    def cautions(self, n_clients: int) -> list[str]:
        """What is unwise about the settings for so many rows, in sentences that are told once, before a run."""
        return []

    def resolved(self, n_clients: int) -> Self:
        """The rule with a number in place of `n_byzantine: auto`: a fifth of the rows, or the most that it accepts of them.

        A share of the rows is a number that is asked for: it is taken as it is, whether the rule accepts it or not.
        """
        if not isinstance(self.n_byzantine, Auto):
            return self
        if isinstance(self.n_byzantine, Share):
            return self.assuming(assumed(self.n_byzantine, n_clients))
        for count in range(assumed(self.n_byzantine, n_clients), 0, -1):
            rule = self.assuming(count)
            try:
                rule.check(n_clients)
            except ValueError:
                continue
            return rule
        return self.assuming(0)

    def assuming(self, n_byzantine: int) -> Self:
        """The rule with another `n_byzantine`."""
        return replace(self, n_byzantine=n_byzantine)  # type: ignore[call-arg]

    def check(self, n_clients: int) -> None:
        """Refuse a number of rows that the rule cannot handle.

        Raises:
            ValueError: with the violated condition and its numbers.
        """

    def tolerated(self, n_clients: int) -> int:
        """How many of `n_clients` rows may be arbitrary: `n_byzantine`, or any minority where a rule has no such setting."""
        if not self.robust:
            return 0
        return (n_clients - 1) // 2 if self.n_byzantine is None else self.n_byzantine

    def on(self, geometry: Geometry, weights_C: Tensor | None = None, *, past: Past | None = None) -> Aggregate:
        """The call on finite rows whose geometry is known; rules that are weighted means do not make the rows themselves."""
        return self(geometry.rows, weights_C, past=past)

    def influence_on(
        self, geometry: Geometry, weights_C: Tensor | None, result: Aggregate, *, past: Past | None = None
    ) -> Tensor:
        """`influence` of what `on` returned."""
        return self.influence(geometry.rows, weights_C, result, past=past)

    def influence(
        self,
        updates_CD: Tensor,
        weights_C: Tensor | None = None,
        result: Aggregate | None = None,
        *,
        past: Past | None = None,
    ) -> Tensor:
        """`[C]` share of each row in what the server used, summing to 1.

        Rules that keep or drop whole rows share by the weights that they used among the kept ones; coordinate rules count the
        values that survive.

        Args:
            updates_CD: `[C, D]` as in the call.
            weights_C: `[C]` as in the call.
            result: what the call returned, if known: spares computing it again.
            past: as in the call.
        """
        check_input(updates_CD, weights_C)
        rule, finite_C = self.resolved(len(updates_CD)), finite_rows(updates_CD)
        if bool(finite_C.all()):
            rule.check(len(updates_CD))
            return rule.shares(updates_CD, weights_C, result, **rule._told(past))
        rule, rows_CD, weights_C = rule._without_rows(~finite_C, updates_CD, weights_C)
        if result is not None:
            scores = None if result.scores is None else result.scores[finite_C]
            result = Aggregate(result.update, result.kept[finite_C], scores)
        return spread(rule.shares(rows_CD, weights_C, result, **rule._told(past)), finite_C, fill=0.0)

    def shares(self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None) -> Tensor:
        """`influence` on finite rows whose number has been checked."""
        kept_C = (result or self.aggregate(updates_CD, weights_C)).kept
        return kept_C / kept_C.sum()

    def figures(
        self, geometry: Geometry, weights_C: Tensor | None, past: Past, poisoned_C: Tensor
    ) -> Mapping[str, float]:
        """The rule's own figures about a round, logged under `aggregator/`; none unless a rule has some.

        Args:
            geometry: of the finite rows that it aggregated.
            weights_C: `[C]` as in the call.
            past: as in the call.
            poisoned_C: `[C]` bool, which rows an attacker made: for measuring only.
        """
        return {}

    def without(self, removed: int) -> Self:
        """The same rule after `removed` suspicious rows are gone: it tolerates that many fewer.

        As C - f does not grow and f shrinks, a condition such as C > 2f + 2 that held before still holds
        afterwards, unless more rows were removed than the rule tolerates.
        """
        if not removed or self.n_byzantine is None or isinstance(self.n_byzantine, Auto):
            return self
        return self.assuming(max(0, self.n_byzantine - removed))

    def dropping(self, dropped_C: Tensor) -> Self:
        """`without` the rows of a mask, for rules that tell rows apart by their place.

        Raises:
            ValueError: the rule cannot go on without them.
        """
        return self.without(int(dropped_C.sum()))

    def _without_rows(
        self, dropped_C: Tensor, updates_CD: Tensor, weights_C: Tensor | None
    ) -> tuple[Self, Tensor, Tensor | None]:
        """The rule, rows and weights that remain when rows are dropped."""
        dropped = int(dropped_C.sum())
        if dropped == len(updates_CD):
            raise ValueError(f"all {dropped} updates contain NaN or Inf")
        rest = None if weights_C is None else weights_C[~dropped_C]
        try:
            rule = self.dropping(dropped_C)
            rule.check(len(updates_CD) - dropped)
            if rest is not None:
                check_weights(rest)
        except ValueError as error:
            raise ValueError(f"{error} ({dropped} of {len(updates_CD)} updates contain NaN or Inf)") from None
        return rule, updates_CD[~dropped_C], rest


def check_input(updates_CD: Tensor, weights_C: Tensor | None) -> None:
    """Raise ValueError unless the updates are floating point `[C, D]` and weights, if given, can be normalised."""
    if updates_CD.ndim != 2 or not updates_CD.is_floating_point() or not len(updates_CD):
        shape = f"{list(updates_CD.shape)} {updates_CD.dtype}"
        raise ValueError(f"updates must be floating point of shape [C, D] with C > 0, got {shape}")
    if weights_C is not None:
        if weights_C.shape != updates_CD.shape[:1]:
            raise ValueError(f"{len(updates_CD)} updates need as many weights, got shape {list(weights_C.shape)}")
        check_weights(weights_C)


def check_weights(weights_C: Tensor) -> None:
    """Raise ValueError unless the weights are finite, non-negative and not all zero."""
    if not bool(torch.isfinite(weights_C).all() & (weights_C >= 0).all() & (weights_C > 0).any()):
        raise ValueError(f"weights must be finite, non-negative and not all zero, got {weights_C.tolist()}")


def finite_rows(updates_CD: Tensor) -> Tensor:
    """`[C]` bool, which rows hold neither NaN nor Inf."""
    # A row's sum is not finite if any entry is not; the few such rows are looked at again, as a sum may also
    # overflow.
    finite_C = torch.isfinite(updates_CD.sum(1))
    for row in torch.nonzero(~finite_C).flatten().tolist():
        finite_C[row] = torch.isfinite(updates_CD[row]).all()
    return finite_C


def spread(values: Tensor, rows_C: Tensor, fill: float) -> Tensor:
    """`[C]` the values at the given rows, `fill` elsewhere."""
    spread_C = values.new_full(rows_C.shape, fill)
    spread_C[rows_C] = values
    return spread_C
