"""Search ranges of hyper-parameters, declared where the field is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tunable:
    """Marks a numeric field that a sweep may search: `boost: Annotated[float, Tunable(1, 50, log=True)]`.

    Attributes:
        low: smallest value.
        high: largest value.
        log: whether to search on a logarithmic scale.
        integer: whether only whole numbers make sense.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"search range needs low < high (and low > 0 on a log scale), got {self}")

    def holds(self, value: object) -> bool:
        """Whether the search could draw this value."""
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """Marks a field that a sweep may search among given values."""

    values: tuple[str | int | float | bool, ...]

    def holds(self, value: object) -> bool:
        """Whether the search could draw this value."""
        return value in self.values
