"""Mean and confidence interval over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95 % confidence interval; NaN for a single value."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of a mean.

    Args:
        values: one figure a seed, at least one.

    Raises:
        ValueError: no values.

    Example:
        >>> print(interval([0.8, 0.9, 1.0]))
        0.900 ± 0.248
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, math.nan)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, float(student_t.ppf(0.975, n - 1)) * deviation / math.sqrt(n))
