"""Mean and confidence interval over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import expit, logit
from scipy.stats import binomtest
from scipy.stats import t as student_t

UNBOUNDED = (-math.inf, math.inf)
FEWEST = 3
"""Under three values an interval says more about Student's t than about the figure: of two it is 12.7 standard errors wide."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    What cannot leave two ends, such as a share, has its interval on the logit scale, where there are none: with
    p the mean, moved to [0, 1], and h the half-width of Student's t interval on that scale, the ends are
    expit(logit p -+ h / (p (1 - p))). It never leaves the ends, widens away from the nearer one, and is Student's own where the
    figures lie close together. The mean is transformed, not each figure, so that figures at 0 and 1 do no harm.

    Attributes:
        mean: the mean.
        half: half-width of Student's t interval; NaN for fewer than three values.
        bounds: what the figure cannot leave, such as (0, 1) for a share.
        n: number of values.

    References:
        Korn, Graubard, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts Estimated from
        Survey Data", Survey Methodology 24, 1998: the logit interval with Student's t. The variance by the delta method.
    """

    mean: float
    half: float
    bounds: tuple[float, float] = UNBOUNDED
    n: int = 0

    @property
    def low(self) -> float:
        """Lower end; NaN where there is no interval."""
        return self._end(-1)

    @property
    def high(self) -> float:
        """Upper end; NaN where there is no interval."""
        return self._end(1)

    def _end(self, side: int) -> float:
        if not self.half or not self._between:
            return self.mean + side * self.half
        low, high = self.bounds
        return low + (high - low) * float(expit(self._scaled(self.mean) + side * self.half * self._stretch))

    @property
    def _between(self) -> bool:
        return math.isfinite(self.bounds[1] - self.bounds[0]) and self.bounds[0] < self.mean < self.bounds[1]

    def _scaled(self, value: float) -> float:
        """A value on the scale of the interval."""
        low, high = self.bounds
        return float(logit(min(max((value - low) / (high - low), 0.0), 1.0))) if self._between else value

    @property
    def _stretch(self) -> float:
        """How much longer small differences are on the scale of the interval: its derivative at the mean."""
        low, high = self.bounds
        return (high - low) / ((self.mean - low) * (high - self.mean)) if self._between else 1.0

    @property
    def reach(self) -> tuple[float, float]:
        """From the mean down to the lower end and up to the upper one: what a picture draws."""
        return max(self.mean - self.low, 0.0), max(self.high - self.mean, 0.0)  # not -1e-17

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
        error = self.half * self._stretch / float(student_t.ppf(0.975, self.n - 1))
        return float(student_t.sf((self._scaled(self.mean) - self._scaled(limit)) / error, self.n - 1))

    def __str__(self) -> str:
        if math.isnan(self.half):
            return f"{self.mean:.3f}"
        if max(abs(self.mean - self.half - self.low), abs(self.mean + self.half - self.high)) > 0.0005:
            return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Sequence[float], bounds: tuple[float, float] = UNBOUNDED) -> Interval:
    """Student's t interval of a mean, on the logit scale where the figure has two ends; see `Interval`.

    Args:
        values: one figure a seed, at least one.
        bounds: what the figure cannot leave; see `metrics.bounds`.

    Raises:
        ValueError: no values.

    Example:
        >>> print(interval([0.8, 0.9, 1.0]))
        0.900 ± 0.248
        >>> print(interval([0.8, 0.9, 1.0], (0, 1)))
        0.900 [0.363, 0.993]
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
