"""Search ranges of hyper-parameters, declared where the field is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints


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


def as_span(given: Any) -> Tunable | Choice:
    """What a search may draw, from `{low, high, log, integer}`, a list of choices, or `{choice: [...]}`.

    Raises:
        ValueError: it is none of these, or a range without numbers in it.
    """
    expected = "expected {low, high, log, integer}, a list or {choice: [...]}"
    if isinstance(given, Mapping) and set(given) == {"choice"}:
        given = given["choice"]
    if isinstance(given, list | tuple):
        if not given or not all(isinstance(value, str) or _is_number(value, bool) for value in given):
            raise ValueError(f"{expected}: choices are names or numbers, at least one, got {str(given)[:80]}")
        if len(set(map(repr, given))) < len(given):
            raise ValueError(f"{expected}: a choice is given twice in {str(given)[:80]}")
        return Choice(tuple(given))
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given) <= {"low", "high", "log", "integer"}:
        raise ValueError(f"{expected}, got {str(given)[:80]}")
    ends = (given["low"], given["high"])
    if not all(map(_is_number, ends)) or not all(
        isinstance(given.get(flag, False), bool) for flag in ("log", "integer")
    ):
        raise ValueError(f"{expected}: low and high are numbers, log and integer true or false, got {str(given)[:80]}")
    if given.get("integer", False) and any(end != int(end) for end in ends):
        raise ValueError(f"{expected}: the ends of a range of whole numbers are whole, got {str(given)[:80]}")
    return Tunable(**given)


def _is_number(value: Any, *others: type) -> bool:
    if isinstance(value, bool):
        return bool in others
    return isinstance(value, int | float) and abs(value) <= 1e300 and math.isfinite(value)


def tunables(component: type) -> dict[str, Tunable | Choice]:
    """The annotated search ranges of a component's fields."""
    hints = get_type_hints(component, include_extras=True)
    found = {}
    for field in fields(component):
        for mark in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(mark, Tunable | Choice):
                found[field.name] = mark
    return found
