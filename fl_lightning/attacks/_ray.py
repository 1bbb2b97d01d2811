"""The strongest point on a ray, for objectives that jump: a coarse scan over orders of magnitude, then ever finer ones."""

from collections.abc import Callable, Sequence
from math import isnan, log2
from typing import NamedTuple

Objective1D = Callable[[float], float]

FIRST, LATER = 10, 3
"""Points of the first refinement, and of every later one."""

EQUAL = 1e-9
"""Relative difference below which two values are equal."""


class Peak(NamedTuple):
    """Where a search along rays ended.

    Attributes:
        ray: index of the best ray.
        gamma: the smallest strength that reaches its best value.
        value: that value.
        trials: evaluations of an objective, all rays together.
        at_reach: whether the best point of the coarse scan was the farthest: farther out may be better still.
    """

    ray: int
    gamma: float
    value: float
    trials: int
    at_reach: bool


def ray(objective: Objective1D, scale: float, *, reach: float = 64.0, trials: int = 60) -> Peak:
    """The argmax of an objective over gamma >= 0; see `rays`.

    Example:
        >>> peak = ray(lambda gamma: -abs(gamma - 5.0), scale=1.0)
        >>> round(peak.gamma, 2), peak.trials <= 60
        (5.0, True)
    """
    return rays([objective], [scale], reach=reach, trials=trials)


def rays(objectives: Sequence[Objective1D], scales: Sequence[float], *, reach: float = 64.0, trials: int = 60) -> Peak:
    """The strongest point on several rays.

    Tried are gamma = 0 and scale * 2^k for |k| <= log2(reach); then ten points spaced geometrically between the neighbours
    of the best one; then three such at a time, on the best ray only, while trials are left. Against rules that select rows
    the objectives jump, which leads golden-section and step-doubling searches astray.

    Args:
        objectives: what to maximise on each ray; NaN counts as worse than anything.
        scales: the unit of gamma on each ray, >= 0; 0: nothing but gamma = 0 is tried.
        reach: farthest point of the scan, in units of the scale.
        trials: largest number of evaluations, all rays together, >= 1.

    Returns:
        The best point; of points that are equal (to 1e-9) the one with the smaller gamma.
    """
    lines = [_Line(objective, scale) for objective, scale in zip(objectives, scales, strict=True)]
    budget = trials
    for line in lines:
        budget -= line.scan(reach, budget)
    ends = [line.best() == line.last for line in lines]
    for line in lines:
        budget -= line.refine(FIRST, budget)
    best = max(range(len(lines)), key=lambda index: lines[index].value)
    line = lines[best]
    while budget > 0 and line.narrowing:
        budget -= line.refine(LATER, budget)
    return Peak(best, line.best(), line.value, trials - budget, ends[best])


class _Line:
    """One ray with all that was tried on it."""

    def __init__(self, objective: Objective1D, scale: float):
        self.objective, self.scale = objective, scale
        self.values: dict[float, float] = {}
        self.ratio, self.last = 2.0, float("inf")

    def scan(self, reach: float, budget: int) -> int:
        """The coarse points, the middle first, so that a small budget still sees the scale itself."""
        top = max(0, int(log2(max(1.0, reach)) + 1e-9))
        points = [self.scale * 2.0**power for power in sorted(range(-top, top + 1), key=abs)] if self.scale else []
        self.last = self.scale * 2.0**top if self.scale else float("inf")
        return self._try([0.0, *points], budget)

    def refine(self, count: int, budget: int) -> int:
        """Points between the neighbours that the best one had at the last spacing."""
        if budget <= 0 or not self.narrowing:
            return 0
        centre, ratio = self.best(), self.ratio
        if centre == 0:  # nothing lies between 0 and a multiple of it: look once below the smallest point tried
            centre, ratio = min(gamma for gamma in self.values if gamma) / 8, 8.0
        self.ratio = ratio ** (2 / (count + 1))
        return self._try([centre / ratio * self.ratio**place for place in range(1, count + 1)], budget)

    @property
    def narrowing(self) -> bool:
        """Whether a finer look can find anything new: not at 0, of which no multiple lies nearby, beyond the first look."""
        return bool(self.scale) and self.ratio > 1 + 1e-12 and (self.best() > 0 or self.ratio == 2)

    def _try(self, points: Sequence[float], budget: int) -> int:
        """Evaluate what is new, as far as the budget goes; returns how much of it was used."""
        new = [point for point in points if not any(abs(point - old) <= 1e-12 * old for old in self.values)]
        for point in new[:budget]:
            value = self.objective(point)
            self.values[point] = -float("inf") if isnan(value) else value
        return len(new[:budget])

    @property
    def value(self) -> float:
        """The best value so far."""
        return max(self.values.values(), default=-float("inf"))

    def best(self) -> float:
        """The smallest gamma whose value equals the best."""
        value = self.value
        level = value - EQUAL * abs(value) if abs(value) < float("inf") else value
        return min((gamma for gamma, each in self.values.items() if each >= level), default=0.0)
