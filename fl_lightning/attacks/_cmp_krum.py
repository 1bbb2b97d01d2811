"""Covert model poisoning against Krum: a descent that the rehearsed rule would still select.

References:
    Wei, Li, Ding, Ma, Jeon, Poor, "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization", 2021,
    sections 3.3 and 3.4: Algorithm 1, eqs. 9-18, Theorem 2.
"""

from collections.abc import Callable
from math import inf, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators._distances import squared_distances
from fl_lightning.aggregators._krum import nearest_sums


class Rehearsal:
    """Krum as the attackers rehearse it: M crafted rows `candidate + offsets` among B benign ones.

    The distances between benign rows and the parts of all others that do not depend on the candidate are computed once; a
    check then reads the benign matrix once, and the crafted rows are the very ones that will be uploaded, noise included.

    Args:
        benign_ND: `[N, D]` benign updates, known or guessed.
        offsets_MD: `[M, D]` crafted rows minus the candidate; the first is 0.
        n_byzantine: the server's f; C - f - 2 neighbours count, at least one.
        squared: whether the server's Krum sums squared distances.
        copies_B: `[B]` which row of `benign_ND` each of the B benign clients is taken for; None: one each.
    """

    def __init__(
        self,
        benign_ND: Tensor,
        offsets_MD: Tensor,
        n_byzantine: int,
        *,
        squared: bool,
        copies_B: Tensor | None = None,
    ):
        self.squared = squared
        self.copies_B = torch.arange(len(benign_ND)) if copies_B is None else copies_B
        self.n_benign, self.n_crafted = len(self.copies_B), len(offsets_MD)
        self.neighbours = max(1, self.n_benign + self.n_crafted - n_byzantine - 2)
        # Measured from their mean, rows are no longer than their distances: nothing cancels in the products below.
        self.centre_D = benign_ND.mean(0)
        self.rows_ND = benign_ND - self.centre_D
        self.offsets_MD = offsets_MD
        self.between_BB = self._length(squared_distances(benign_ND)[self.copies_B][:, self.copies_B])
        self._among_MM = self._length(squared_distances(offsets_MD))
        self._norms_N = self.rows_ND.square().sum(1, dtype=torch.float64).cpu()
        self._cross_MN = (offsets_MD @ self.rows_ND.T).double().cpu()
        self._offsets_M = offsets_MD.square().sum(1, dtype=torch.float64).cpu()
        self.benign_scores_B = nearest_sums(self.between_BB, min(self.neighbours, self.n_benign - 1))

    def _length(self, squared: Tensor) -> Tensor:
        return squared if self.squared else squared.clamp(min=0).sqrt()

    def to_benign(self, candidate_D: Tensor) -> Tensor:
        """`[M, B]` distances, squared where the server squares, of every crafted row to every benign one."""
        away_D = candidate_D - self.centre_D
        products_N = (self.rows_ND @ away_D).double().cpu()
        to_first_N = away_D.square().sum(dtype=torch.float64).cpu() - 2 * products_N + self._norms_N
        along_M = (self.offsets_MD @ away_D).double().cpu()
        moved_MN = 2 * (along_M[:, None] - self._cross_MN) + self._offsets_M[:, None]
        return self._length((to_first_N + moved_MN).clamp(min=0)[:, self.copies_B])

    def selected(self, candidate_D: Tensor, margin: float = 0.0) -> bool:
        """The original constraint: Krum over all rows selects a crafted one (any of them: copies differ by eps only).

        With a margin its score must be below (1 - margin) times the lowest benign one, as benign rows that are only guessed
        ask for.
        """
        to_benign_MB = self.to_benign(candidate_D)
        top = torch.cat([self._among_MM, to_benign_MB], 1)
        scores_C = nearest_sums(torch.cat([top, torch.cat([to_benign_MB.T, self.between_BB], 1)]), self.neighbours)
        return bool(scores_C[: self.n_crafted].min() < (1 - margin) * scores_C[self.n_crafted :].min())

    def near_enough(self, candidate_D: Tensor, margin: float = 0.0) -> bool:
        """The simplified constraint, eq. 13: sum of the n nearest benign distances + (M - 1) eps <= E.

        The inner minimum is exact by sorting: no genetic algorithm is needed. Necessary, not sufficient: crafted rows are
        neighbours of benign ones, too, so that the lowest benign score that Krum sees is at most E.
        """
        nearest_n = self.to_benign(candidate_D)[0].sort().values[: max(0, self.n)]
        return float(nearest_n.sum()) + self.slack <= (1 - margin) * self.bound

    @property
    def n(self) -> int:
        """Benign neighbours of a crafted row, U - 2M - 1 when f = M: all neighbours but the M - 1 copies."""
        return self.neighbours - (self.n_crafted - 1)

    @property
    def bound(self) -> float:
        """E of eq. 12: the lowest score of the benign rows among themselves."""
        return float(self.benign_scores_B.min())

    @property
    def slack(self) -> float:
        """What the M - 1 copies add to the score of the first crafted row: (M - 1) eps."""
        return float(self._length(self._offsets_M).sum())

    def ball(self) -> tuple[Tensor, float]:
        """Centre `[D]` and radius of a ball in which every point satisfies eq. 13; the radius is infinite for n < 1.

        Taken round S = Krum's benign winner with its n - 1 nearest, see `radius_squared`.
        """
        if self.n < 1:
            return self.centre_D, inf
        winner = int(self.benign_scores_B.argmin())
        members = self.copies_B[self.between_BB[winner].argsort()[: self.n]]
        rows_SD = self.rows_ND[members.to(self.rows_ND.device)]
        squared_radius = radius_squared(rows_SD, self.bound, self.slack, self.n, squared=self.squared)
        return self.centre_D + rows_SD.mean(0), sqrt(max(0.0, squared_radius))


def radius_squared(rows_SD: Tensor, bound: float, slack: float, n: int, *, squared: bool) -> float:
    """r^2 such that ||x - Xi_S|| <= r implies eq. 13, for the mean Xi_S and any set S of at least n benign rows.

    The n nearest distances sum to at most n sqrt(V_S + ||x - Xi_S||^2), V_S the mean squared distance to Xi_S, hence
    r^2 = ((E - (M - 1) eps) / n)^2 - V_S for plain distances and (E - (M - 1) eps^2) / n - V_S for squared ones.
    Corrected here: eq. 18 lacks the factor 2/B of eq. 28 and counts U - 2M - 2 neighbours where eq. 13 has U - 2M - 1; with both
    repaired it still compares a pure number with a length (eq. 25) and is often negative. This form scales with the models.

    Args:
        rows_SD: `[S, D]` benign rows.
        bound: E.
        slack: (M - 1) eps, or (M - 1) eps^2 for squared distances.
        n: benign neighbours that count, U - 2M - 1 when f = M.
        squared: whether E sums squared distances.
    """
    variance = float((rows_SD - rows_SD.mean(0)).square().sum(1, dtype=torch.float64).mean())
    level = (bound - slack) / n
    return (level if squared else max(0.0, level) ** 2) - variance


def toward(centre_D: Tensor, target_D: Tensor, radius: float) -> Tensor:
    """Theorem 2's start: from the centre towards the target, as far as the radius but never beyond the target.

    Corrected here: eq. 18 lacks min(1, .) and overshoots the target under a loose constraint.
    """
    distance = float((target_D - centre_D).norm())
    return target_D.clone() if distance <= radius else centre_D + (target_D - centre_D) * (radius / distance)


def shrink_until(accepts: Callable[[Tensor], bool], point_D: Tensor, centre_D: Tensor, tries: int = 60) -> Tensor:
    """The point moved towards the centre by 5 % at a time until it is accepted."""
    for _ in range(tries):
        if accepts(point_D):
            break
        point_D = centre_D + 0.95 * (point_D - centre_D)
    return point_D


class Descent(NamedTuple):
    """Where the constrained descent ended.

    Attributes:
        point_D: `[D]` the last accepted point, or the start.
        feasible: whether it satisfies the constraint.
        accepted: accepted steps.
        tried: tested steps.
        eta: the last step size.
    """

    point_D: Tensor
    feasible: bool
    accepted: int
    tried: int
    eta: float


def constrained_descent(
    start_D: Tensor,
    gradient: Callable[[Tensor], Tensor],
    accepts: Callable[[Tensor], bool],
    *,
    eta: float,
    decay: float = 0.5,
    stop: float = 1 / 256,
    cap: int = 60,
) -> Descent:
    """Algorithm 1: descend while the constraint holds, shrink the step where it does not.

    Corrected here: the loop ends only when the step has become small (the text also stops at the first success, which allows
    one step a round) or after `cap` trials (it would never end while every step is accepted).

    Args:
        start_D: `[D]` where to start.
        gradient: `[D]` gradient of the attackers' loss at a point; asked once for each accepted step.
        accepts: the constraint.
        eta: first step size.
        decay: factor on the step size after a rejection, in (0, 1).
        stop: end when the step size is below this share of the first one.
        cap: largest number of trials.
    """
    point_D, step, feasible = start_D, eta, accepts(start_D)
    accepted = tried = 0
    direction_D = gradient(point_D)
    while tried < cap and step >= stop * eta:
        tried += 1
        candidate_D = point_D - step * direction_D
        if accepts(candidate_D):
            point_D, feasible, accepted = candidate_D, True, accepted + 1
            direction_D = gradient(point_D)
        else:
            step *= decay
    return Descent(point_D, feasible, accepted, tried, step)
