"""The server's defenses one after the other, on rows that are measured once and written as rarely as possible."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators import Geometry
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, applied, trained_columns

Policy = Literal["method", "keep", "skip"]
"""What is done when a defense flags all rows: what the method says, all stay, or the round is skipped."""


class Judged(NamedTuple):
    """What one defense decided.

    Attributes:
        label: of the defense.
        rows: `[n]` int64 numbers of the rows that it saw.
        verdict: about them, with the mask that the policy makes of it.
        flagged_n: `[n]` bool, who looked suspicious.
    """

    label: str
    rows: Tensor
    verdict: Verdict
    flagged_n: Tensor

    @property
    def metrics(self) -> dict[str, float]:
        """The defense's own figures; `flagged_all` where it says whom it flagged; `idle` where nothing came of that."""
        figures = dict(self.verdict.metrics)
        if self.verdict.flagged_C is not None:
            figures["flagged_all"] = float(bool(self.flagged_n.all()))
        if self.idle:
            figures["idle"] = 1.0
        return figures

    @property
    def idle(self) -> bool:
        """Whether it flagged every row and let all of them stay: a detector that decided nothing."""
        return bool(self.flagged_n.all()) and bool(self.verdict.keep_C.all())


class Chained(NamedTuple):
    """What the defenses leave.

    Attributes:
        geometry: of the R rows that stay, as changed; `.rows` are the rows themselves.
        weights_R: `[R]` their weights.
        keep_C: `[C]` bool, which rows stay.
        states: every defense's memory afterwards.
        judged: what each decided, in order.
    """

    geometry: Geometry
    weights_R: Tensor
    keep_C: Tensor
    states: dict[str, State]
    judged: list[Judged]


def defended(
    defenses: Mapping[str, Defense],
    updates_CD: Tensor,
    keep_C: Tensor,
    context: ServerContext,
    states: Mapping[str, State],
    all_flagged: Policy = "method",
) -> Chained:
    """Let every defense judge the rows that those before it have left.

    Factors on the rows are multiplied in at once, unless this or a later defense reads the geometry only: then the rows stay as
    they were sent, and only the final sum sees the factors.

    Args:
        defenses: by label, in order; those at the clients are passed over.
        updates_CD: `[C, D]` as sent; not modified.
        keep_C: `[C]` bool, the finite rows.
        context: with weights and clients of all C rows.
        states: every defense's memory.
        all_flagged: what is done when a defense flags all rows.
    """
    acting = {label: defense for label, defense in defenses.items() if not defense.at_clients}
    after, judged = {**states}, list[Judged]()
    keep_C, weights_C = keep_C.clone(), context.weights_C
    clients_C = torch.arange(len(updates_CD)) if context.clients_C is None else context.clients_C
    trained = trained_columns(updates_CD, context).stop
    follow = any(not defense.reads_rows for defense in acting.values())
    geometry = Geometry(updates_CD, trained, products_follow=follow)
    if not bool(keep_C.all()):
        geometry = Geometry(
            updates_CD[keep_C], trained, products_follow=follow
        )  # what is not finite cannot be measured
    labels = list(acting)
    for place, (label, defense) in enumerate(acting.items()):
        rows = keep_C.nonzero().flatten()
        if not len(rows):
            break
        seen = replace(
            context, weights_C=weights_C[rows], clients_C=clients_C[rows.to(clients_C.device)], geometry=geometry
        )
        rows_CD = geometry.rows if defense.reads_rows else stand_in(geometry, updates_CD)
        verdict = defense.apply(rows_CD, seen, after[label])
        after[label] = dict(verdict.state)
        kept, flagged = decided(defense, verdict, all_flagged)
        judged.append(Judged(label, rows, verdict._replace(keep_C=kept), flagged))
        lazy = any(not acting[later].reads_rows for later in labels[place:])
        geometry = changed(geometry, verdict, rows_CD, seen, lazy=lazy).keep(kept)
        if not follow and not geometry.made:
            geometry = Geometry(geometry.rows, trained)  # where all read rows, a rule measures what is left afresh
        weights_C = weights_C.index_copy(0, rows, verdict.weights_C.to(weights_C))
        keep_C = keep_C.index_copy(0, rows, kept)
    return Chained(geometry, weights_C[keep_C], keep_C, after, judged)


def decided(defense: Defense, verdict: Verdict, all_flagged: Policy) -> tuple[Tensor, Tensor]:
    """`[C]` bool who stays, and `[C]` bool who was flagged."""
    flagged_C = ~verdict.keep_C if verdict.flagged_C is None else verdict.flagged_C
    if not bool(flagged_C.all()) or all_flagged == "method":
        return verdict.keep_C, flagged_C
    return torch.full_like(verdict.keep_C, all_flagged == "keep"), flagged_C


def changed(geometry: Geometry, verdict: Verdict, rows_CD: Tensor, context: ServerContext, *, lazy: bool) -> Geometry:
    """The geometry after a verdict's rows and factors."""
    trained = trained_columns(rows_CD, context).stop
    if verdict.updates_CD is not None and verdict.updates_CD is not rows_CD:
        geometry = Geometry(verdict.updates_CD, trained)
    if verdict.scale_C is None:
        return geometry
    if lazy:
        return geometry.scale(verdict.scale_C)
    return Geometry(applied(verdict._replace(updates_CD=None), geometry.rows, context.layout), trained)


def stand_in(geometry: Geometry, updates_CD: Tensor) -> Tensor:
    """`[R, D]` what a defense that reads the geometry only is given: the rows where they exist, else NaN of their shape."""
    if geometry.made:
        return geometry.rows
    return updates_CD.new_full((1, 1), torch.nan).expand(len(geometry), updates_CD.shape[1])
