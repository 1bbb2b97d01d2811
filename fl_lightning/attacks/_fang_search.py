"""Would Krum select this row? The search for the strength of Fang's attack on it.

References:
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 3.3, theorem 1.
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, eqs. 3 and 4.
"""

from collections.abc import Callable
from math import ceil, floor, inf, log2, sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators import squared_distances

Search = Literal["halving", "bisection"]


class Geometry(NamedTuple):
    """All that decides whether Krum selects the row -lambda s: every lambda is tested without touching D coordinates again.

    Attributes:
        pairs_HH: squared distances between the honest rows, infinite on the diagonal.
        norms_H: squared norms of the honest updates.
        dots_H: their inner products with the direction s.
        moved: squared norm of s, which is d0, the number of coordinates where s is not 0.
    """

    pairs_HH: Tensor
    norms_H: Tensor
    dots_H: Tensor
    moved: float


def geometry(honest_HD: Tensor, direction_D: Tensor) -> Geometry:
    """Measure the honest rows once, in float64."""
    pairs_HH = squared_distances(honest_HD).fill_diagonal_(torch.inf)
    norms_H = torch.stack([row.double().square().sum() for row in honest_HD]).cpu()
    dots_H = torch.stack([row.double() @ direction_D.double() for row in honest_HD]).cpu()
    return Geometry(pairs_HH, norms_H, dots_H, float(direction_D.double().square().sum()))


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
    return ((sqrt(best) if squared else best) + sqrt(float(g.norms_H.max()))) / sqrt(g.moved)


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
