"""What a table or figure of a paper claims, and the rule by which measured runs confirm or refute it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.stats import false_discovery_control

from fl_lightning.config import Seed
from fl_lightning.metrics import Interval, bounds, interval
from fl_lightning.registry import number_check

__all__ = [
    "SIZES",
    "VERDICTS",
    "Bound",
    "Claim",
    "Joint",
    "Limit",
    "Order",
    "PaperTable",
    "Printed",
    "Reading",
    "Size",
    "SizeName",
    "TableCell",
    "Verdict",
    "discovery_rates",
    "measured",
    "p_value",
    "verdict",
]

Verdict = Literal["confirmed", "stronger", "weaker", "not reproduced", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "stronger", "weaker", "not reproduced", "undecided")
SizeName = Literal["full", "reduced", "quick"]
SIZES: tuple[SizeName, ...] = ("full", "reduced", "quick")
"""The largest first: a claim is decided from the first one whose runs are all there."""
Window = Literal["last", "third", "half", "all"] | int | tuple[int, int]


class TableCell(NamedTuple):
    """A row and a column of a table: one experiment, run with several seeds."""

    row: str
    column: str


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _numbers = number_check()


class Reading(_Strict):
    """Which figure of a run counts.

    Attributes:
        metric: a metric of the run.
        over: the rounds that it is averaged over: the last one, the last third or half of all, all, round n (from 1), or
            rounds n to m. A column of the table may say otherwise.
    """

    metric: str = "attack/success"
    over: Window = "last"


class Printed(Reading):
    """Printed values, compared one by one.

    Attributes:
        id: claims are numbered `id.1`, `id.2`, ... row by row.
        printed: row -> one value a column; None where the paper has none.
        strong: whether a high or a low value is the stronger result of the row's method.
        tolerance: differences up to it count as none.
        follows: row -> why its values follow from those of other claims; they are shown, but not counted again.
    """

    id: str
    printed: dict[str, tuple[float | None, ...]]
    strong: Literal["high", "low"] = "high"
    tolerance: float = Field(default=0.05, gt=0)
    follows: dict[str, str] = Field(default_factory=dict)


class Order(Reading):
    """One row above another, seed by seed.

    Attributes:
        id: of the claim; numbered by column where rows are compared in every column.
        says: the claim in words.
        higher: a row, or `row | column`.
        lower: likewise.
        factor: how many times as high.
        margin: by how much it may lie below that all the same.
        matters: an advantage up to this counts as none: the interval must lie above it.
        log: compare logarithms, for positive figures that differ by orders of magnitude; the margin does not count then.
        follows: why the claim follows from others, where it does.
    """

    id: str
    says: str
    higher: str
    lower: str
    factor: float = Field(default=1.0, gt=0)
    margin: float = Field(default=0.0, ge=0)
    matters: float = Field(default=0.0, ge=0)
    log: bool = False
    follows: str = ""

    def difference(self, higher: float, lower: float) -> float:
        """How far the claim holds for one seed; above 0 it does."""
        if self.log:
            return math.log(higher) - math.log(self.factor * lower)
        return higher - self.factor * lower + self.margin


class Bound(Reading):
    """A limit that a row keeps in every column.

    Attributes:
        id: of the claim; numbered by column.
        says: the claim in words.
        row: a row, or `row | column`.
        at_least: lower limit, or None.
        at_most: upper limit, or None.
        printed: whether the paper prints the limit; else it was chosen here, for words such as "close to".
        follows: why the claim follows from others, where it does.
    """

    id: str
    says: str
    row: str
    at_least: float | None = None
    at_most: float | None = None
    printed: bool = False
    follows: str = ""

    @property
    def limit(self) -> float:
        """The limit, upper or lower."""
        return float(self.at_most if self.at_least is None else self.at_least)  # type: ignore[arg-type]

    @model_validator(mode="after")
    def _one_limit(self) -> "Bound":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.id}: give either at_least or at_most")
        return self


class Limit(Reading):
    """One of several limits of a `Joint` claim.

    Attributes:
        less: a row, or `row | column`, whose figure with the same seed is subtracted before; empty: none.
        at_least: lower limit, or None.
        at_most: upper limit, or None.
    """

    less: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "Limit":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.metric}: give either at_least or at_most")
        return self

    def slack(self, value: float) -> float:
        """How far a value keeps the limit; below 0 it does not."""
        return value - self.at_least if self.at_least is not None else float(self.at_most or 0.0) - value


class Joint(_Strict):
    """Several limits that the same run keeps at once, such as success and stealth, in every column.

    Attributes:
        id: of the claim; numbered by column.
        says: the claim in words.
        row: a row, or `row | column`.
        limits: all of them; a run counts by the one that it keeps least.
        fails: whether the claim is that a run does not keep all of them.
        follows: why the claim follows from others, where it does.
    """

    id: str
    says: str
    row: str
    limits: tuple[Limit, ...] = Field(min_length=2)
    fails: bool = False
    follows: str = ""

    def slack(self, values: Sequence[float]) -> float:
        """How far a run holds the claim; below 0 it does not.

        Args:
            values: for each limit its figure, and after it that of `less` where it has one.
        """
        figures = iter(values)
        kept = min(one.slack(next(figures) - (next(figures) if one.less else 0.0)) for one in self.limits)
        return -kept if self.fails else kept


class Size(_Strict):
    """How large a table is run.

    `full` is the paper's samples, rounds, clients and network; what is cut makes it `reduced`, and `quick` is what two cores do
    in minutes.

    Attributes:
        seeds: every cell runs with each of them.
        up_to: while a claim is undecided its cells run with two seeds more, until they have so many; the numbers after the
            largest of `seeds`.
        minutes: time on two cores with `seeds`.
        changes: of the base, by dotted path.
        rows: row -> further changes of this row, stronger than its own.
        leave_out: rows that this size does not run; claims about them get no verdict.
    """

    seeds: tuple[Seed, ...] = Field(min_length=2)
    up_to: int = Field(default=9, ge=0, le=1000)
    minutes: float = Field(gt=0)
    changes: dict[str, Any] = Field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()

    def seeds_up_to(self, count: int) -> tuple[Seed, ...]:
        """The first `count` of all seeds that may count; not fewer than `seeds`, not more than `up_to`."""
        more = max(0, min(count, self.up_to) - len(self.seeds))
        first = max(self.seeds) + 1
        return (*self.seeds, *range(first, first + more))

    @property
    def every_seed(self) -> tuple[Seed, ...]:
        """All seeds that may count."""
        return self.seeds_up_to(self.up_to)


class Claim(NamedTuple):
    """One decidable claim.

    Attributes:
        id: its number.
        says: the claim in words.
        printed: the paper's value, or None where it prints none.
        cells: the one or two cells that it is about.
        readings: the figure of each cell that counts.
        rule: the `Printed`, `Order`, `Bound` or `Joint` that it comes from.
        follows: why it follows from other claims and is not counted again; empty where it stands for itself.
    """

    id: str
    says: str
    printed: float | None
    cells: tuple[TableCell, ...]
    readings: tuple[Reading, ...]
    rule: Printed | Order | Bound | Joint
    follows: str = ""


class PaperTable(_Strict):
    """A table or figure of a paper as experiments and claims; see `configs/paper/`.

    Attributes:
        title: what it shows.
        setting: the paper's setting, what it leaves open, and what was chosen here.
        base: name of an experiment, or its slots inline.
        rows: label -> changes of the base by slot or dotted path; usually attacks or defences.
        columns: label -> further changes, and `over` where a column is a point in time of the same run.
        sizes: `quick`, `reduced` and `full`, those that there are.
        printed: values to compare.
        orders: rows to compare with each other.
        bounds: limits to keep.
        joints: limits to keep together.
    """

    title: str
    setting: str
    base: str | dict[str, Any]
    rows: dict[str, dict[str, Any]] = Field(min_length=1)
    columns: dict[str, dict[str, Any]] = Field(default={"": {}}, min_length=1)
    sizes: dict[SizeName, Size]
    printed: tuple[Printed, ...] = ()
    orders: tuple[Order, ...] = ()
    bounds: tuple[Bound, ...] = ()
    joints: tuple[Joint, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> "PaperTable":
        for own in self.printed:
            for row in own.follows:
                self._cells(row)
            for row, values in own.printed.items():
                self._cells(row)
                if len(values) != len(self.columns):
                    raise ValueError(
                        f"{own.id}, {row!r}: expected {len(self.columns)} printed values, got {len(values)}"
                    )
        for name in [
            *(row for size in self.sizes.values() for row in (*size.rows, *size.leave_out)),
            *(end for one in self.orders for end in (one.higher, one.lower)),
            *(one.row for one in self.bounds),
            *(one.row for one in self.joints),
            *(limit.less for one in self.joints for limit in one.limits if limit.less),
        ]:
            self._cells(name)
        return self

    def _cells(self, name: str) -> list[TableCell]:
        """The cells of a row, or of `row | column`."""
        row, bar, column = name.partition(" | ")
        if row not in self.rows or (bar and column not in self.columns):
            raise ValueError(f"no cell {name!r}; rows are {list(self.rows)}, columns {list(self.columns)}")
        return [TableCell(row, column)] if bar else [TableCell(row, each) for each in self.columns]

    def claims(self) -> Iterator[Claim]:
        """All claims, numbered."""
        for own in self.printed:
            values = [
                (cell, value)
                for row, of_row in own.printed.items()
                for cell, value in zip(self._cells(row), of_row, strict=True)
                if value is not None
            ]
            for number, (cell, value) in enumerate(values, 1):
                says = f"{own.metric} of {_label(cell)}"
                reason = own.follows.get(cell.row, "")
                yield Claim(f"{own.id}.{number}", says, value, (cell,), self._readings(own, cell), own, reason)
        for order in self.orders:
            pairs = list(zip(self._cells(order.higher), self._cells(order.lower), strict=True))
            for number, (high, low) in enumerate(pairs, 1):
                where = f" ({high.column})" if len(pairs) > 1 else ""
                name = f"{order.id}.{number}" if len(pairs) > 1 else order.id
                readings = self._readings(order, high, low)
                yield Claim(name, order.says + where, None, (high, low), readings, order, order.follows)
        for bound in self.bounds:
            cells = self._cells(bound.row)
            for number, cell in enumerate(cells, 1):
                where = f" ({cell.column})" if len(cells) > 1 else ""
                name = f"{bound.id}.{number}" if len(cells) > 1 else bound.id
                printed = bound.limit if bound.printed else None
                readings = self._readings(bound, cell)
                yield Claim(name, bound.says + where, printed, (cell,), readings, bound, bound.follows)

        for joint in self.joints:
            cells = self._cells(joint.row)
            for number, cell in enumerate(cells, 1):
                where = f" ({cell.column})" if len(cells) > 1 else ""
                name = f"{joint.id}.{number}" if len(cells) > 1 else joint.id
                compared = [(limit, own) for limit in joint.limits for own in self._compared(limit, cell)]
                readings = tuple(self._readings(limit, own)[0] for limit, own in compared)
                yield Claim(
                    name, joint.says + where, None, tuple(own for _, own in compared), readings, joint, joint.follows
                )

    def _compared(self, limit: Limit, cell: TableCell) -> tuple[TableCell, ...]:
        """The cell that a limit is about, and the one whose figure is subtracted."""
        if not limit.less:
            return (cell,)
        row, _, column = limit.less.partition(" | ")
        return cell, TableCell(row, column or cell.column)

    def _readings(self, reading: Reading, *cells: TableCell) -> tuple[Reading, ...]:
        windows = (self.columns[cell.column].get("over", reading.over) for cell in cells)
        return tuple(Reading(metric=reading.metric, over=over) for over in windows)


def _label(cell: TableCell) -> str:
    return f"{cell.row}, {cell.column}" if cell.column else cell.row


def read(history: Mapping[int, float], rounds: int, over: Window) -> float | None:
    """Mean of a metric over a window of rounds; None where it was not measured there.

    Args:
        history: round (from 0) -> value.
        rounds: of the run.
        over: see `Reading`.
    """
    if not history:
        return None
    match over:
        case "last":
            first, last = max(history), max(history)
        case "third":
            first, last = rounds - math.ceil(rounds / 3), rounds - 1
        case "half":
            first, last = rounds // 2, rounds - 1
        case "all":
            first, last = 0, rounds - 1
        case int():
            first = last = over - 1
        case (start, stop):
            first, last = start - 1, stop - 1
    within = [value for step, value in history.items() if first <= step <= last]
    return math.fsum(within) / len(within) if within else None


def measured(claim: Claim, values: Sequence[Mapping[int, float]]) -> Interval | None:
    """The interval that a claim is judged by, over the seeds; of the paired difference for an order. None: nothing was measured.

    Args:
        claim: what is claimed.
        values: for each cell of the claim its figure by seed.
    """
    seeds = sorted(set.intersection(*(set(of_cell) for of_cell in values)))
    if not seeds:
        return None
    if isinstance(claim.rule, Order):
        return interval([claim.rule.difference(values[0][seed], values[1][seed]) for seed in seeds])
    if isinstance(claim.rule, Joint):
        return interval([claim.rule.slack([of_cell[seed] for of_cell in values]) for seed in seeds])
    return interval([values[0][seed] for seed in seeds], bounds(claim.rule.metric))


def verdict(claim: Claim, found: Interval | None) -> Verdict:
    """Whether what was measured bears a claim out. No claim is confirmed by being imprecise.

    * A printed value v is *confirmed* if the 95 % interval lies within v +- tolerance: a test of equivalence. If it lies wholly
      outside of that, the value is *stronger* or *weaker* by its sign, and *not reproduced* if the mean falls short by more than
      four tolerances and more than half of v. Else it is *undecided*.
    * An order is judged by the differences seed by seed (higher - factor * lower + margin): *confirmed* if their interval lies
      above 0 and reaches no difference too small to matter, *not reproduced* if it lies at or below 0 or below what matters,
      else *undecided*.
    * Of several limits that a run must keep at once, the one that it keeps least counts, seed by seed: how far it is kept.
    * A limit is *confirmed* if the interval keeps it, *not reproduced* if the interval lies beyond it, else *undecided*.

    With fewer than three seeds there is no interval, and every claim is *undecided*.

    Args:
        claim: what is claimed.
        found: what `measured` gave.
    """
    if found is None or math.isnan(found.half):
        return "undecided"
    rule = claim.rule
    if isinstance(rule, Order):
        if found.high <= 0 or found.high < rule.matters:
            return "not reproduced"
        return "confirmed" if found.low > 0 and found.low >= rule.matters else "undecided"
    if isinstance(rule, Joint):
        return "confirmed" if found.low >= 0 else "not reproduced" if found.high < 0 else "undecided"
    if isinstance(rule, Bound):
        low, high = (found.low, found.high) if rule.at_most is None else (-found.high, -found.low)
        limit = rule.limit if rule.at_most is None else -rule.limit
        return "confirmed" if low >= limit else "not reproduced" if high < limit else "undecided"
    printed = float(claim.printed or 0.0)
    if found.low >= printed - rule.tolerance - TIE and found.high <= printed + rule.tolerance + TIE:
        return "confirmed"
    if found.low <= printed + rule.tolerance and found.high >= printed - rule.tolerance:
        return "undecided"
    gain = found.mean - printed if rule.strong == "high" else printed - found.mean
    if gain > 0:
        return "stronger"
    return "not reproduced" if -gain > max(4 * rule.tolerance, abs(printed) / 2) else "weaker"


TIE = 1e-12
"""Rounding of 0.8 + 0.05."""


def p_value(claim: Claim, found: Interval | None) -> float:
    """One-sided p-value of a confirmation: how easily chance alone would give it; NaN without an interval.

    A printed value is confirmed by two one-sided tests (Schuirmann, 1987): the larger p-value counts.
    """
    if found is None:
        return math.nan
    rule = claim.rule
    below = Interval(-found.mean, found.half, (-found.bounds[1], -found.bounds[0]), found.n)
    if isinstance(rule, Order | Joint):
        return found.above(rule.matters if isinstance(rule, Order) else 0.0)
    if isinstance(rule, Bound):
        return found.above(rule.limit) if rule.at_most is None else below.above(-rule.limit)
    printed = float(claim.printed or 0.0)
    return max(found.above(printed - rule.tolerance), below.above(-printed - rule.tolerance))


def discovery_rates(values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values over a family of claims; NaN where there is none.

    References:
        Benjamini, Hochberg, "Controlling the False Discovery Rate", Journal of the Royal Statistical Society B 57, 1995.
    """
    known = [value for value in values if not math.isnan(value)]
    adjusted = iter(false_discovery_control(known) if known else ())
    return [value if math.isnan(value) else float(next(adjusted)) for value in values]
