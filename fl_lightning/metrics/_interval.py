"""Mean and confidence interval over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest
from scipy.stats import t as student_t

UNBOUNDED = (-math.inf, math.inf)
FEWEST = 3
"""Under three values an interval says more about Student's t than about the figure: of two it is 12.7 standard errors wide."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: the mean.
        half: half-width of Student's t interval; NaN for fewer than three values.
        bounds: what the figure cannot leave, such as (0, 1) for a share. The interval ends there: the true mean lies within,
            so that cutting off what lies beyond takes no coverage away.
        n: number of values.
    """

    mean: float
    half: float
    bounds: tuple[float, float] = UNBOUNDED
    n: int = 0

    @property
    def low(self) -> float:
        """Lower end; NaN where there is no interval."""
        return max(self.mean - self.half, self.bounds[0]) if self.half == self.half else math.nan

    @property
    def high(self) -> float:
        """Upper end; NaN where there is no interval."""
        return min(self.mean + self.half, self.bounds[1]) if self.half == self.half else math.nan

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def above(self, limit: float) -> float:
        """One-sided p-value of a true mean of at most `limit`: small where it surely lies above; NaN without interval."""
        if math.isnan(self.half) or self.n < FEWEST:
            return math.nan
        if self.half == 0:
            return 0.0 if self.mean > limit else 1.0
        error = self.half / float(student_t.ppf(0.975, self.n - 1))
        return float(student_t.sf((self.mean - limit) / error, self.n - 1))

    def __str__(self) -> str:
        if math.isnan(self.half):
            return f"{self.mean:.3f}"
        if self.low > self.mean - self.half or self.high < self.mean + self.half:
            return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Sequence[float], bounds: tuple[float, float] = UNBOUNDED) -> Interval:
    """Student's t interval of a mean.

    Args:
        values: one figure a seed, at least one.
        bounds: what the figure cannot leave; see `metrics.bounds`.

    Raises:
        ValueError: no values.

    Example:
        >>> print(interval([0.8, 0.9, 1.0]))
        0.900 ± 0.248
        >>> print(interval([0.8, 0.9, 1.0], (0, 1)))
        0.900 [0.652, 1.000]
        >>> print(interval([0.1, 0.9]))
        0.500
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n < FEWEST:
        return Interval(mean, math.nan, bounds, n)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, float(student_t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), bounds, n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a probability of which one sample is known: the sampling error of a single run's share.

    Wilson's score interval, by scipy: inside [0, 1], and not empty at 0 and 1. It speaks of other test samples for the same
    model; how much another seed changes is told by `interval`.

    Args:
        share: in [0, 1], of the n samples.
        n: number of samples, at least 1.

    Raises:
        ValueError: a share outside of [0, 1], or no samples.

    Example:
        >>> low, high = wilson(1.0, 100)
        >>> round(low, 4), high
        (0.963, 1.0)

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"a share lies in [0, 1] and has samples, got {share} of {n}")
    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
