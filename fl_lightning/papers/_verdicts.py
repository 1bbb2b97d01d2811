"""Claims judged from the records of runs, each from the largest size whose runs are all there."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot
from matplotlib.figure import Figure

from fl_lightning.config import Experiment, Seed
from fl_lightning.errors import ConfigError
from fl_lightning.metrics import Interval
from fl_lightning.papers._claims import (
    SIZES,
    VERDICTS,
    Claim,
    PaperTable,
    Reading,
    SizeName,
    TableCell,
    Verdict,
    discovery_rates,
    measured,
    p_value,
    read,
    verdict,
)
from fl_lightning.papers._records import Records, digest
from fl_lightning.papers._tables import experiments
from fl_lightning.runs import write_atomically

__all__ = ["Judged", "Reproduction", "TableRuns", "check_markers", "judge", "plain", "write_verdicts"]


class TableRuns:
    """The runs of a table: what each cell is at each size, and what is recorded of it.

    Args:
        name: `paper:table`.
        table: rows, columns, claims.
        records: what was run.
        fast: the synthetic stand-ins of `--fast`.
    """

    def __init__(self, name: str, table: PaperTable, records: Records, fast: bool = False):
        self.name = name
        self.table = table
        self.records = records
        self.fast = fast
        self._cells: dict[SizeName, dict[TableCell, tuple[str, Experiment]]] = {}

    @cached_property
    def asked(self) -> dict[TableCell, set[str]]:
        """The metrics that claims read of each cell."""
        metrics: dict[TableCell, set[str]] = {}
        for claim in self.table.claims():
            for cell, reading in zip(claim.cells, claim.readings, strict=True):
                metrics.setdefault(cell, set()).add(reading.metric)
        return metrics

    def cells(self, size: SizeName) -> dict[TableCell, tuple[str, Experiment]]:
        """Digest and experiment of every cell that a size runs.

        Raises:
            ConfigError: naming the cell that cannot run.
        """
        if size not in self._cells:
            own = experiments(self.table, size, self.fast) if size in self.table.sizes else {}
            self._cells[size] = {cell: (digest(one), one) for cell, one in own.items()}
        return self._cells[size]

    def histories(self, size: SizeName, cell: TableCell, metric: str) -> dict[Seed, dict[int, float]]:
        """A metric of a cell, round by round, for the seeds that count and are recorded."""
        if cell not in self.cells(size):
            return {}
        config, _ = self.cells(size)[cell]
        seeds = self.table.sizes[size].every_seed
        found = {seed: self.records.find(self.name, config, seed, {metric}) for seed in seeds}
        return {seed: record.history(metric) for seed, record in found.items() if record}

    def figures(self, size: SizeName, cell: TableCell, reading: Reading) -> dict[Seed, float]:
        """What a claim reads of a cell, seed by seed, where it was measured."""
        seen = self.histories(size, cell, reading.metric)
        found = {seed: read(own, self.cells(size)[cell][1].rounds, reading.over) for seed, own in seen.items() if own}
        return {seed: value for seed, value in found.items() if value is not None}

    def complete(self, size: SizeName, claim: Claim) -> bool:
        """Whether all seeds of a size are recorded for all that a claim reads."""
        return all(
            cell in self.cells(size)
            and set(self.table.sizes[size].seeds) <= set(self.histories(size, cell, reading.metric))
            for cell, reading in zip(claim.cells, claim.readings, strict=True)
        )

    def judge(self, size: SizeName, claim: Claim) -> "Judged":
        """The verdict on a claim from the runs of a size."""
        pairs = zip(claim.cells, claim.readings, strict=True)
        found = measured(claim, [self.figures(size, cell, reading) for cell, reading in pairs])
        return Judged(self.name, claim, found, verdict(claim, found), size if found else None)

    def sizes(self, claim: Claim) -> list[SizeName]:
        """The sizes whose runs are all recorded for a claim, the largest first."""
        if not self.records.of(self.name):
            return []
        return [size for size in SIZES if size in self.table.sizes and self.complete(size, claim)]


def judge(table: TableRuns, size: SizeName | None = None) -> "Iterator[Judged]":
    """Every claim of a table, from the largest size whose runs are all recorded.

    Args:
        table: its runs.
        size: taken, with the runs that there are, where the runs of no size are complete; None: such a claim is undecided.
    """
    for claim in table.table.claims():
        complete = table.sizes(claim)
        every = [table.judge(one, claim) for one in complete]
        if every:
            yield every[0]._replace(smaller={one.size: one.verdict for one in every[1:] if one.size})
        elif size:
            yield table.judge(size, claim)
        else:
            yield Judged(table.name, claim, None, "undecided")


class Judged(NamedTuple):
    """A claim with its verdict.

    Attributes:
        table: `paper:table`.
        claim: what was claimed.
        found: mean and interval over the seeds (of the paired difference, for an order); None where nothing was measured.
        verdict: by the rule of `papers.verdict`.
        size: of the runs that it was decided from; None where there were none.
        smaller: the verdicts of smaller sizes.
    """

    table: str
    claim: Claim
    found: Interval | None
    verdict: Verdict
    size: SizeName | None = None
    smaller: Mapping[SizeName, Verdict] = {}


@dataclass(frozen=True)
class Reproduction:
    """What became of the claims.

    Attributes:
        run_id: the MLflow parent of all runs.
        judged: every claim of the tables.
        failures: why runs are missing.
    """

    run_id: str
    judged: tuple[Judged, ...]
    failures: tuple[str, ...]

    def counts(self) -> dict[Verdict, int]:
        """How many claims got each verdict; those that follow from others are not counted again."""
        found = Counter(one.verdict for one in self.judged if not one.claim.follows)
        return {one: found[one] for one in VERDICTS}

    def rows(self) -> list[tuple[str, ...]]:
        """One row a claim: number, words, printed value, measured interval, verdict, adjusted p-value, size."""
        return [
            (
                one.claim.id,
                one.claim.says,
                "" if one.claim.printed is None else f"{one.claim.printed:g}",
                str(one.found or "-"),
                one.verdict + (f" (follows: {one.claim.follows})" if one.claim.follows else ""),
                "" if math.isnan(rate) else f"{rate:.3f}" if rate >= 0.001 else "< 0.001",
                one.size or "-",
            )
            for one, rate in zip(self.judged, self.rates(), strict=True)
        ]

    def rates(self) -> list[float]:
        """Benjamini and Hochberg's adjusted p-value of each claim, over the family of its paper; NaN where it has none."""
        rates = dict.fromkeys(range(len(self.judged)), math.nan)
        for paper in {one.table.partition(":")[0] for one in self.judged}:
            family = [place for place, one in enumerate(self.judged) if self._counts(one, paper)]
            values = [p_value(self.judged[place].claim, self.judged[place].found) for place in family]
            rates |= dict(zip(family, discovery_rates(values), strict=True))
        return list(rates.values())

    @staticmethod
    def _counts(one: Judged, paper: str) -> bool:
        """Whether a claim of the paper stands for itself: what follows from others is not counted again."""
        return one.table.partition(":")[0] == paper and not one.claim.follows

    def summary(self) -> str:
        """How many claims are decided, and the verdicts by paper, as text."""
        counted = sum(self.counts().values())
        decided = counted - self.counts()["undecided"]
        also = len(self.judged) - counted
        first = f"{counted} claims, {decided} decided; {also} more follow from them and are not counted again."
        lines = [first, "", f"| paper | {' | '.join(VERDICTS)} |"]
        lines.append("|---" * (1 + len(VERDICTS)) + "|")
        papers = dict.fromkeys(one.table.partition(":")[0] for one in self.judged)
        for paper in papers:
            own = Counter(one.verdict for one in self.judged if self._counts(one, paper))
            lines.append(f"| {paper} | {' | '.join(str(own[one]) for one in VERDICTS)} |")
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """The rows as a table."""
        lines = ["| claim | | printed | measured | verdict | p, adjusted | size |", "|---|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows()]
        return "\n".join(lines) + "\n"

    def picture(self) -> Figure:
        """Printed and measured values side by side."""
        shown = [one for one in self.judged if one.claim.printed is not None and one.found]
        figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * max(1, len(shown))), layout="constrained")
        places = range(len(shown))
        means = [one.found.mean if one.found else float("nan") for one in shown]
        reach = [one.found.reach for one in shown if one.found]
        axes.errorbar(means, places, xerr=list(zip(*reach, strict=True)), fmt="o", label="measured, 95 %", capsize=3)
        printed = [float(one.claim.printed or 0.0) for one in shown]
        axes.plot(printed, list(places), "x", color="black", label="printed")
        axes.set_yticks(places, [f"{one.claim.id}  {one.claim.says}" for one in shown], fontsize=7)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.legend()
        return figure


def plain(outcome: Reproduction) -> list[dict[str, Any]]:
    """The verdicts as plain values."""
    return [
        {
            "table": one.table,
            "claim": one.claim.id,
            "says": one.claim.says,
            "printed": one.claim.printed,
            "mean": one.found.mean if one.found else None,
            "half": one.found.half if one.found else None,
            "low": one.found.low if one.found else None,
            "high": one.found.high if one.found else None,
            "n": one.found.n if one.found else 0,
            "verdict": one.verdict,
            "follows": one.claim.follows,
            "p_adjusted": None if math.isnan(rate) else rate,
            "size": one.size,
        }
        for one, rate in zip(outcome.judged, outcome.rates(), strict=True)
    ]


def check_markers(path: str) -> tuple[str, str]:
    """What stands before and after the markers that verdicts are written between.

    Raises:
        ConfigError: the file cannot be read or written, or has no markers `<!-- verdicts -->` and `<!-- /verdicts -->`.
    """
    try:
        with open(path, "r+", encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write to {path}: {getattr(error, 'strerror', None) or error}") from None
    head, start, rest = text.partition("<!-- verdicts -->")
    _, end, tail = rest.partition("<!-- /verdicts -->")
    if not start or not end:
        raise ConfigError(f"{path} has no <!-- verdicts --> and <!-- /verdicts --> to write between")
    return head + start, end + tail


def write_verdicts(outcome: Reproduction, path: str) -> None:
    """Put the summary and all verdicts between the markers `<!-- verdicts -->` and `<!-- /verdicts -->` of a text file.

    Raises:
        ConfigError: see `check_markers`.
    """
    before, after = check_markers(path)
    every = f"<details><summary>every claim</summary>\n\n{outcome.markdown()}\n</details>\n"
    write_atomically(Path(path), f"{before}\n{outcome.summary()}\n{every}{after}".encode())
