"""PDRR: pre-aggregate, detect, remove; the federation re-aggregates what is left.

References:
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, section 4.
"""

from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Krum, Median, TrimmedMean
from fl_lightning.aggregators._median import middle_ranks
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, detected, fitting
from fl_lightning.defenses._pdrr_evidence import (
    distances_to,
    near_copies,
    printed_survival,
    sign_correlation,
    survival,
)
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable


class Detection(NamedTuple):
    """Which rows are flagged, and the `[C]` scores (larger = more suspicious)."""

    flagged: Tensor
    scores: Tensor


def bloc(scores_C: Tensor, q: float, gap: float, least: float = 2) -> Tensor:
    """The rows that score high together, far above all others.

    A row is a candidate when it reaches the printed threshold, q times the largest score. As somebody always does, the
    candidates are flagged only if there are at least `least`, at most half of the rows, and the lowest of them lies `gap` above
    every other row: attackers who act as one leave a gap, honest clients without an attack spread continuously.

    Args:
        scores_C: `[C]` at most 1.
        q: in (0, 1].
        gap: in (0, 1).
        least: how many rows act as one, at least 2.

    Example:
        >>> bloc(torch.tensor([0.9, 0.2, 0.88, 0.3, 0.1]), 0.95, 0.2)
        tensor([ True, False,  True, False, False])
        >>> bloc(torch.tensor([0.9, 0.2, 0.8, 0.6, 0.1]), 0.95, 0.2).any()
        tensor(False)
    """
    candidates_C = (scores_C >= q * scores_C.max()) & (scores_C > 0)
    count = int(candidates_C.sum())
    if not least <= count <= len(scores_C) // 2:
        return torch.zeros_like(candidates_C)
    apart = float(scores_C[candidates_C].min() - scores_C[~candidates_C].max())
    return candidates_C if apart >= gap else torch.zeros_like(candidates_C)


def pdrr_krum(
    updates_CD: Tensor,
    selected: int,
    *,
    q: float = 0.85,
    gap: float = 0.1,
    near: float = 0.02,
    crowd: float = 0.2,
    faithful: bool = False,
) -> Detection:
    """Rows whose directions of change agree with that of Krum's winner, or that copy it.

    Printed: rho_i >= q max rho, which always flags the winner itself. Default: the winner's bloc if there is one, else its
    near-copies (see `near_copies`; the score is then 1 - distance / largest distance). The bloc goes first because next to a
    crafted model of little length lie honest rows of little length too, that only signs tell apart. Honest rows correlate up
    to about 0.7 with the winner, crafted copies of the attack at least 0.94 with each other. Attackers who cannot oppose iid
    clients send a weakened honest model: honest rows correlate with it, and once it is as small as the noise on the copies,
    the copies do not, so that distance alone tells. Clients who hold the same class and no other agree as attackers do, in
    signs (up to 0.97) though not in distance: a bloc smaller than a `crowd` is taken for such clients.

    Args:
        updates_CD: `[C, D]` finite.
        selected: the row that Krum takes.
        q: threshold on the correlation of signs.
        gap: how far the bloc must be from all other rows.
        near: rows closer to the winner than this share of the distance to any row beyond are its copies.
        crowd: share of the rows that a bloc holds at least; copies may be fewer.
        faithful: the printed rule.
    """
    if faithful:
        rho_C = sign_correlation(updates_CD, selected, negligible=0.0)
        return Detection(rho_C >= q * rho_C.max(), rho_C)
    rho_C = sign_correlation(updates_CD, selected)
    bloc_C = bloc(rho_C, q, gap, max(2, crowd * len(updates_CD)))
    if bool(bloc_C.any()):
        return Detection(bloc_C, rho_C)
    distances_C = distances_to(updates_CD, selected)
    copies_C = near_copies(distances_C, near)
    return (
        Detection(copies_C, 1 - distances_C / distances_C.max()) if bool(copies_C.any()) else Detection(copies_C, rho_C)
    )


def pdrr_survival(
    updates_CD: Tensor, cut: int = 0, *, q: float = 0.95, gap: float = 0.2, depth: float = 0.4
) -> Detection:
    """Rows whose values are cut off in nearly every coordinate, for trimmed mean and median.

    score_i = 1 - v_i / max v, with v_i the share of coordinates in which row i survives a cut of `depth` of the rows on either
    side, or of what the rule itself cuts where that is more. Corrected here: a cut of fewer values than there are attackers
    lets some of theirs through, and then honest outliers look like them.

    Args:
        updates_CD: `[C, D]` finite.
        cut: how many values the rule cuts on either side, less than C / 2; 0 for the median, where `depth` decides.
        q: threshold relative to the largest score.
        gap: how far the flagged rows must be from all others.
        depth: share of the rows that is cut for counting; the largest share of attackers that is told apart.
    """
    n_rows = len(updates_CD)
    cut = max(cut, int(depth * n_rows + 1e-9))
    survival_C = survival(updates_CD, cut, n_rows - 1 - cut)
    scores_C = 1 - survival_C / survival_C.max().clamp(min=1e-300)
    return Detection(bloc(scores_C, q, gap), scores_C)


def printed_trimmed_mean(updates_CD: Tensor, first: int, last: int, q: float) -> Detection:
    """As printed for the trimmed mean: rows cut off at least q times as often as the one cut off most often."""
    trimmed_C = 1 - printed_survival(updates_CD, first, last)
    return Detection(trimmed_C >= q * trimmed_C.max(), trimmed_C)


def printed_median(updates_CD: Tensor, first: int, last: int, q: float) -> Detection:
    """As printed for the median: rows that supply it at most (1 - q) times as often as the one that does most often."""
    remained_C = printed_survival(updates_CD, first, last)
    return Detection(remained_C <= (1 - q) * remained_C.max(), -remained_C)


class Pdrr(Defense):
    """Flags the crafted models of Fang's attacks by the statistics of the rule that they are crafted for.

    For Krum, trimmed mean and median, whichever is the server's aggregator. As printed the rule flags somebody in every
    round, attack or not: Krum's own winner, and with the trimmed mean up to everybody. The default asks for a bloc first (see
    `bloc`), with Krum also for copies of the winner. When all rows are flagged all are kept.

    Attributes:
        q: threshold relative to the largest score; None: 0.85 for Krum, 0.95 for trimmed mean and median.
        gap: how far the flagged rows must be from all others, not used when `faithful`; None: 0.1 for Krum, 0.2 for the others.
        near: with Krum, rows closer to its winner than this share of the distance to any row beyond are copies of it, not used
            when `faithful`; 0: exact copies only.
        crowd: with Krum, share of the rows that a bloc holds at least, not used when `faithful`. Where clients hold one class
            each, those with the same class are one; attackers below this share are found as copies only.
        depth: largest share of attackers that can be told apart under trimmed mean and median; not used when `faithful`.
        coordinates: how many coordinates, drawn afresh each round, the statistics look at where there are more; a share is
            known to 0.5 / sqrt(coordinates) then. None: all; `faithful` looks at all.
        faithful: the printed rule.
    """

    name: ClassVar[str] = "pdrr"
    cites: ClassVar[tuple[str, ...]] = ("lu2022defense",)

    q: Annotated[float | None, Tunable(0.5, 1)] = Field(default=None, gt=0, le=1)
    gap: float | None = Field(default=None, gt=0, lt=1)
    near: float = Field(default=0.02, ge=0, lt=1)
    crowd: float = Field(default=0.2, ge=0, lt=0.5)
    depth: float = Field(default=0.4, gt=0, lt=0.5)
    coordinates: int | None = Field(default=50_000, ge=1)
    faithful: bool = False

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The aggregator is Krum, trimmed mean or median."""
        if not isinstance(aggregator, Krum | TrimmedMean | Median):
            raise ConfigError(f"pdrr needs the aggregator krum, trimmed_mean or median, got {aggregator.name!r}")

    def detect(self, updates_CD: Tensor, aggregator: Aggregator, generator: torch.Generator | None = None) -> Detection:
        """Detection on plain tensors.

        Args:
            updates_CD: `[C, D]` finite.
            aggregator: Krum, trimmed mean or median.
            generator: draws the coordinates; None: all are used.
        """
        self.check(aggregator, validation=False)
        n_rows = len(updates_CD)
        aggregator = fitting(aggregator, n_rows)
        krum = isinstance(aggregator, Krum)
        q = self.q or (0.85 if krum else 0.95)
        gap = self.gap or (0.1 if krum else 0.2)
        if krum:
            selected = int(aggregator(updates_CD).kept.int().argmax())
            settings = {"q": q, "gap": gap, "near": self.near, "crowd": self.crowd}
            return pdrr_krum(self._some(updates_CD, generator), selected, **settings, faithful=self.faithful)
        cut = aggregator.tolerated(n_rows) if isinstance(aggregator, TrimmedMean) else 0
        if not self.faithful:
            return pdrr_survival(self._some(updates_CD, generator), cut, q=q, gap=gap, depth=self.depth)
        if isinstance(aggregator, Median):
            middle = middle_ranks(n_rows, aggregator.lower)
            return printed_median(updates_CD, middle[0], middle[-1], q)
        return printed_trimmed_mean(updates_CD, cut, n_rows - 1 - cut, q)

    def _some(self, updates_CD: Tensor, generator: torch.Generator | None) -> Tensor:
        """The columns that the statistics look at."""
        n_columns = updates_CD.shape[1]
        if self.faithful or generator is None or self.coordinates is None or n_columns <= self.coordinates:
            return updates_CD
        columns = torch.randint(n_columns, (self.coordinates,), generator=generator).sort().values
        return updates_CD[:, columns.to(updates_CD.device)]

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Flagged rows go; the server's rule then tolerates that many fewer."""
        flagged_C, scores_C = self.detect(updates_CD, context.aggregator, context.generator("coordinates"))
        return detected(updates_CD, context, flagged_C, scores_C, {"flagged": float(flagged_C.sum())})
