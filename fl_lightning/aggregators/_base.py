"""What an aggregator is: the server's rule that turns the updates of a round into one."""

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

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


class Aggregator(Component, ABC):
    """A rule `[C, D] -> [D]`; calling it checks the input and leaves rows with NaN or Inf out.

    A rule that tolerates `n_byzantine` rows counts every left-out row as one of them.
    """

    def __call__(self, updates_CD: Tensor, weights_C: Tensor | None = None) -> Aggregate:
        """Aggregate the updates of a round.

        Args:
            updates_CD: `[C, D]` one update a row, floating point; not modified.
            weights_C: `[C]` non-negative weights (sample counts); None: equal. Rules that take no weights say so.

        Returns:
            The aggregate; `kept` and `scores` have one entry for every row of the input.

        Raises:
            ValueError: wrong shapes, no finite row, or too few rows for the rule.
        """
        if updates_CD.ndim != 2 or not updates_CD.is_floating_point() or not len(updates_CD):
            raise ValueError(f"updates must be floating point of shape [C, D], got {list(updates_CD.shape)} {updates_CD.dtype}")
        if weights_C is not None and (weights_C.shape != updates_CD.shape[:1] or bool((weights_C < 0).any())):
            raise ValueError(f"weights must be {len(updates_CD)} non-negative numbers, got {weights_C}")
        finite_C = finite_rows(updates_CD)
        if bool(finite_C.all()):
            return self.aggregate(updates_CD, weights_C)
        if not bool(finite_C.any()):
            raise ValueError(f"all {len(updates_CD)} updates contain NaN or Inf")
        rule = self.without(int((~finite_C).sum()))
        part = rule.aggregate(updates_CD[finite_C], None if weights_C is None else weights_C[finite_C])
        kept_C = finite_C.clone()
        kept_C[finite_C] = part.kept
        scores_C = None
        if part.scores is not None:
            scores_C = part.scores.new_full(finite_C.shape, torch.inf)
            scores_C[finite_C] = part.scores
        return Aggregate(part.update, kept_C, scores_C)

    @abstractmethod
    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None) -> Aggregate:
        """The rule itself on finite rows."""

    def check(self, n_clients: int) -> None:
        """Refuse a number of rows that the rule cannot handle.

        Raises:
            ValueError: with the violated condition and its numbers.
        """

    def influence(self, updates_CD: Tensor, weights_C: Tensor | None = None) -> Tensor:
        """`[C]` share of each row in what the server used, summing to 1: equal among the rows that were kept.

        Coordinate rules count the values that survive instead.
        """
        kept_C = self(updates_CD, weights_C).kept
        return kept_C / kept_C.sum()

    def without(self, removed: int) -> Self:
        """The same rule after `removed` suspicious rows are gone: it tolerates that many fewer."""
        if not removed or "n_byzantine" not in {field.name for field in fields(self)}:  # type: ignore[arg-type]
            return self
        return replace(self, n_byzantine=max(0, self.n_byzantine - removed))  # type: ignore[attr-defined,type-var]


def finite_rows(updates_CD: Tensor) -> Tensor:
    """`[C]` bool, which rows hold neither NaN nor Inf."""
    # A row's sum is not finite if any entry is not; the few such rows are looked at again, as a sum may also overflow.
    finite_C = torch.isfinite(updates_CD.sum(1))
    for row in torch.nonzero(~finite_C).flatten().tolist():
        finite_C[row] = torch.isfinite(updates_CD[row]).all()
    return finite_C
