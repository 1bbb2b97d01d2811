"""Would the rule select these copies? Krum, Multi-Krum and Bulyan along a ray, without touching the coordinates again."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Bulyan, Krum, MultiKrum, squared_distances
from fl_lightning.aggregators._bulyan import bulyan_order
from fl_lightning.aggregators._krum import lowest, nearest_sums
from fl_lightning.attacks._rehearsed_rule import RehearsedRule

Selecting = Krum | MultiKrum | Bulyan


class SelectionGeometry(NamedTuple):
    """All that decides which rows are selected while the copies move along base + gamma p.

    Attributes:
        pairs_NN: squared distances between the known rows.
        along_N: p . (base - k_i).
        away_N: |base - k_i|^2.
        length2: |p|^2.
        crafted_C: where the copies stand among all rows.
    """

    pairs_NN: Tensor
    along_N: Tensor
    away_N: Tensor
    length2: float
    crafted_C: Tensor

    def distances(self, gamma: float) -> Tensor:
        """`[C, C]` squared distances between all rows; the copies coincide."""
        to_known_N = (self.away_N + 2 * gamma * self.along_N + gamma**2 * self.length2).clamp(min=0)
        crafted = self.crafted_C.nonzero().flatten()
        known = (~self.crafted_C).nonzero().flatten()
        squared_CC = torch.zeros(len(self.crafted_C), len(self.crafted_C), dtype=torch.float64)
        squared_CC[known[:, None], known] = self.pairs_NN
        squared_CC[crafted[:, None], known] = to_known_N.expand(len(crafted), -1)
        squared_CC[known[:, None], crafted] = to_known_N[:, None].expand(-1, len(crafted))
        return squared_CC


def selection_geometry(server: RehearsedRule, base_D: Tensor, direction_D: Tensor) -> SelectionGeometry:
    """Measure the known rows once, in float64."""
    if not len(server.known_ND):
        nothing = torch.zeros(0, dtype=torch.float64)
        return SelectionGeometry(nothing[:, None], nothing, nothing, 0.0, server.crafted_C)
    away_ND = base_D - server.known_ND
    return SelectionGeometry(
        squared_distances(server.known_ND),
        (away_ND @ direction_D).double().cpu(),
        torch.linalg.vector_norm(away_ND, dim=1).double().square().cpu(),
        float(torch.linalg.vector_norm(direction_D).double().square()),
        server.crafted_C,
    )


def selected(rule: Selecting, squared_CC: Tensor) -> Tensor:
    """Indices of the rows that the rule selects (Bulyan: in its first stage), from their squared distances."""
    n_rows, f = len(squared_CC), rule.n_byzantine
    distances_CC = squared_CC if rule.squared else squared_CC.sqrt()
    if isinstance(rule, Bulyan):
        return bulyan_order(distances_CC, f)[0]
    scores_C = nearest_sums(distances_CC, n_rows - f - 2)
    return lowest(scores_C, 1 if isinstance(rule, Krum) else rule.m or n_rows - f)


def selects(rule: Aggregator) -> bool:
    """Whether the rule keeps or drops whole rows by their distances, as `selected` knows it."""
    return isinstance(rule, Krum | MultiKrum | Bulyan)


def largest_accepted(
    accepts: Callable[[float], bool], scale: float, *, reach: float = 64.0, precision: float = 1e-6
) -> tuple[float | None, int]:
    """The largest gamma that is accepted, next to the scale: farther out, acceptance may come and go.

    From the scale gamma doubles while it is accepted, at most to `reach` times the scale, or halves while it is refused, at
    most to a 64th, then 0; bisection follows between the last accepted and the first refused one.

    Args:
        accepts: whether a gamma is accepted.
        scale: where to begin, >= 0; 0: only 0 is tried.
        reach: farthest gamma, in units of the scale.
        precision: relative, of the result.

    Returns:
        gamma, or None where not even 0 is accepted; and the number of trials.
    """
    tried = 1
    if not scale:
        return (0.0 if accepts(0.0) else None), tried
    if accepts(scale):
        low = scale
        while 2 * low <= reach * scale:
            tried += 1
            if not accepts(2 * low):
                break
            low *= 2
        else:
            return low, tried
        high = 2 * low
    else:
        high = scale
        for low in [*(scale / 2**power for power in range(1, 7)), 0.0]:
            tried += 1
            if accepts(low):
                break
            high = low or high
        else:
            return None, tried
    while high - low > precision * max(high, scale / 1024):  # 0 has no relative precision
        tried += 1
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low, tried
