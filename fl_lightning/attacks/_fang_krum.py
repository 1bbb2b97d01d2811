"""Fang's attack on Krum: the farthest model against the direction of progress that Krum still selects.

References:
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    sections 3.2 and 3.3, theorem 1.
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, eqs. 3-5.
"""

from collections.abc import Callable
from math import ceil, floor, inf, log2
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import squared_distances
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._fang import Fang
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.registry import component

Search = Literal["halving", "bisection"]


class Deviation(NamedTuple):
    """Result of a search.

    Attributes:
        strength: lambda; 0 where none was accepted.
        found: whether Krum accepted a lambda of at least the threshold.
        trials: lambdas tried.
        copies: crafted rows with which the accepted one was tested.
    """

    strength: float
    found: bool
    trials: int
    copies: int


class Geometry(NamedTuple):
    """All that decides whether Krum selects the row -lambda s: every lambda is tested without touching D coordinates again.

    Attributes:
        pairs_HH: squared distances between the honest rows, infinite on the diagonal.
        norms_H: squared norms of the honest updates.
        dots_H: their inner products with the direction s.
        moved: d0, number of coordinates where s is not 0.
    """

    pairs_HH: Tensor
    norms_H: Tensor
    dots_H: Tensor
    moved: int


def geometry(honest_HD: Tensor, direction_D: Tensor) -> Geometry:
    """Measure the honest rows once, in float64."""
    pairs_HH = squared_distances(honest_HD).fill_diagonal_(torch.inf)
    norms_H = torch.stack([row.double().square().sum() for row in honest_HD]).cpu()
    dots_H = torch.stack([row.double() @ direction_D.double() for row in honest_HD]).cpu()
    return Geometry(pairs_HH, norms_H, dots_H, int((direction_D != 0).sum()))


def upper_bound(g: Geometry, n_crafted: int, neighbours: int, *, squared: bool = True) -> float:
    """A lambda that no lambda which Krum accepts exceeds.

    With J crafted rows and n neighbours a crafted row has n - J + 1 honest ones among its neighbours, and

        lambda <= sqrt(min_i sum_{l nearest i} |u_l - u_i|^2 / ((n - J + 1) d0)) + max_i |u_i| / sqrt(d0)

    over the honest rows i and their n nearest honest others; with plain distances the root goes. Corrected here: s has d0
    entries that are not 0, not d, without which the printed bound is none. It holds as long as there are n honest others and
    n - J + 1 > 0 (a smaller count is taken as 1: then the crafted rows are their own neighbours and any lambda is accepted).
    """
    if not g.moved:
        return 0.0
    others = min(neighbours, len(g.pairs_HH) - 1)
    nearest_HH = g.pairs_HH.sort(1).values[:, :others]
    best = float((nearest_HH if squared else nearest_HH.sqrt()).sum(1).min()) / max(1, neighbours - n_crafted + 1)
    return ((best**0.5 if squared else best) + float(g.norms_H.max()) ** 0.5) / g.moved**0.5


def accepted(g: Geometry, strength: float, radii_J: Tensor, neighbours: int, *, squared: bool = True) -> bool:
    """Whether Krum, among the honest rows and J crafted ones, selects the crafted row -lambda s.

    Args:
        g: the honest rows.
        strength: lambda.
        radii_J: `[J]` distances of the crafted rows from the first one, whose own is 0.
        neighbours: how many nearest others Krum sums over.
        squared: whether Krum sums squared distances.
    """
    cross_H = (g.norms_H + 2 * strength * g.dots_H + strength**2 * g.moved).clamp(min=0)
    crafted = torch.cat([radii_J[1:].square(), cross_H])
    honest = torch.cat([g.pairs_HH, cross_H[:, None].expand(-1, len(radii_J))], dim=1)
    if not squared:
        crafted, honest = crafted.sqrt(), honest.sqrt()
    own = crafted.sort().values[:neighbours].sum()
    return bool(own <= honest.sort(1).values[:, :neighbours].sum(1).min())


def search_strength(
    accepts: Callable[[float], bool], start: float, search: Search = "halving", threshold: float = 1e-5
) -> tuple[float, int]:
    """The largest accepted lambda up to `start` that the search finds.

    Args:
        accepts: whether a lambda is accepted.
        start: upper bound.
        search: `halving` tries start, start / 2, ... and takes the first that is accepted; `bisection` narrows the interval
            between an accepted and a refused lambda down to the threshold.
        threshold: lambdas below are not tried.

    Returns:
        lambda, 0 where none was accepted, and the number of trials.
    """
    if not threshold <= start < inf:
        return 0.0, 0
    if search == "halving":
        tries = floor(log2(start / threshold)) + 1
        for trial in range(tries):
            if accepts(start / 2**trial):
                return start / 2**trial, trial + 1
        return 0.0, tries
    if accepts(start):
        return start, 1
    low, high, halvings = 0.0, start, ceil(log2(start / threshold))
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low, halvings + 1


def fang_krum(
    benign_BD: Tensor,
    direction_D: Tensor,
    radii_M: Tensor,
    n_byzantine: int,
    *,
    squared: bool = True,
    search: Search = "halving",
    threshold: float = 1e-5,
) -> Deviation:
    """Lambda with full knowledge: Krum selects -lambda s among M crafted and all benign rows.

    Args:
        benign_BD: `[B, D]` updates of the benign clients, B > 0.
        direction_D: `[D]` s, of -1, 0, 1.
        radii_M: `[M]` distances of the crafted rows from the first one, whose own is 0.
        n_byzantine: f of the server's Krum, which sums over the C - f - 2 nearest others.
        squared: whether the server sums squared distances.
        search: how lambda is searched; see `search_strength`.
        threshold: smallest lambda worth trying.

    Returns:
        The deviation; the crafted updates are -lambda s.

    Example:
        >>> updates = torch.tensor([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 1.0]])
        >>> fang_krum(updates, torch.ones(2), torch.zeros(2), 1, search="bisection").found
        True
    """
    g = geometry(benign_BD, direction_D)
    neighbours = max(1, len(benign_BD) + len(radii_M) - n_byzantine - 2)
    start = upper_bound(g, len(radii_M), neighbours, squared=squared)
    strength, trials = search_strength(
        lambda value: accepted(g, value, radii_M, neighbours, squared=squared), start, search, threshold
    )
    return Deviation(strength, strength > 0, trials, len(radii_M))


def fang_krum_partial(
    honest_HD: Tensor,
    direction_D: Tensor,
    radii_M: Tensor,
    *,
    squared: bool = True,
    search: Search = "halving",
    threshold: float = 1e-5,
) -> Deviation:
    """Lambda with partial knowledge: Krum selects -lambda s among J crafted and the known honest rows.

    J starts at 1 and grows to M until a lambda is found. Krum is played with f = J, hence with H - 2 neighbours: from
    J = H - 1 on the crafted rows are their own neighbours and any lambda passes, which says nothing about the real server.

    Args:
        honest_HD: `[H, D]` honest updates that the attackers know.
        direction_D: `[D]` s, of -1, 0, 1.
        radii_M: `[M]` distances of the crafted rows from the first one, whose own is 0.
        squared: whether the server sums squared distances.
        search: how lambda is searched; see `search_strength`.
        threshold: smallest lambda worth trying.

    Returns:
        The deviation; the crafted updates are -lambda s.
    """
    g = geometry(honest_HD, direction_D)
    neighbours, total = max(1, len(honest_HD) - 2), 0
    for copies in range(1, len(radii_M) + 1):
        start, radii_J = upper_bound(g, copies, neighbours, squared=squared), radii_M[:copies]
        strength, trials = search_strength(
            lambda value, radii_J=radii_J: accepted(g, value, radii_J, neighbours, squared=squared),  # type: ignore[misc]
            start,
            search,
            threshold,
        )
        total += trials
        if strength:
            return Deviation(strength, True, total, copies)
    return Deviation(0.0, False, total, len(radii_M))


def scatter(direction_D: Tensor, n_rows: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """`[n, D]` offsets from the crafted model: 0 for the first row, uniform in a ball of radius epsilon for the others.

    Coordinates that the attack leaves alone (s = 0) stay exactly equal: tiny noise there would give random signs.
    """
    noise_MD = torch.randn(n_rows, len(direction_D), generator=generator).to(direction_D)
    noise_MD *= direction_D != 0
    moved = max(1, int((direction_D != 0).sum()))
    radii_M = epsilon * torch.rand(n_rows, generator=generator).to(direction_D) ** (1 / moved)
    radii_M[0] = 0
    return noise_MD * (radii_M / noise_MD.norm(dim=1).clamp(min=1e-30))[:, None]


@component
class FangKrum(Fang):
    """Fang's attack on Krum, which also reaches Multi-Krum and Bulyan: near-copies of w_Re - lambda s.

    The first malicious client sends w_Re - lambda s, the others a model within epsilon of it, and lambda is as large as Krum
    accepts. Where no lambda is accepted, lambda = 0: the attackers send the broadcast model back.

    Attributes:
        search: `halving`, as Fang et al., or `bisection`, which comes closer to the largest lambda.
        threshold: smallest lambda worth trying.
        epsilon: radius of the ball in which the copies lie.
        squared: whether Krum sums squared distances; None: as the server does, squared where that is not known.
    """

    name: ClassVar[str] = "fang_krum"

    search: Annotated[Search, Choice(("halving", "bisection"))] = "halving"
    threshold: float = Field(default=1e-5, gt=0)
    epsilon: Annotated[float, Tunable(1e-7, 0.1, log=True)] = Field(default=1e-3, ge=0)
    squared: bool | None = None

    def craft(self, view: View) -> Poisoned:
        """Search lambda, then send near-copies."""
        server = self.server(view)
        squared = getattr(server, "squared", True) if self.squared is None else self.squared
        direction_D = self.direction(view)
        offsets_MD = scatter(direction_D, view.n_malicious, self.epsilon, view.generator("copies"))
        radii_M = offsets_MD.double().norm(dim=1).cpu()
        if self.sees_all(view):
            tolerated = getattr(server, "n_byzantine", view.n_malicious)
            result = fang_krum(
                view.benign_updates, direction_D, radii_M, tolerated,
                squared=squared, search=self.search, threshold=self.threshold,
            )  # fmt: skip
        else:
            result = fang_krum_partial(
                view.known_updates, direction_D, radii_M,
                squared=squared, search=self.search, threshold=self.threshold,
            )  # fmt: skip
        metrics = {
            "lambda": result.strength,
            "found": float(result.found),
            "trials": float(result.trials),
            "copies": float(result.copies),
        }
        return Poisoned(offsets_MD - result.strength * direction_D, metrics=metrics)
