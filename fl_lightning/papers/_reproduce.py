"""The papers' tables and figures, run again: `fl-lightning reproduce PAPER[:TABLE]`."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib import pyplot
from matplotlib.figure import Figure
from pydantic import ValidationError

from fl_lightning import tracking
from fl_lightning.config import Experiment, load, read_yaml
from fl_lightning.errors import ConfigError, errors_under, explain, suggest
from fl_lightning.metrics import Interval
from fl_lightning.papers._claims import (
    VERDICTS,
    Claim,
    PaperTable,
    Reading,
    TableCell,
    Verdict,
    discovery_rates,
    measured,
    p_value,
    read,
    verdict,
)
from fl_lightning.papers._pictures import draw_table
from fl_lightning.parallel import Jobs
from fl_lightning.paths import CONFIGS
from fl_lightning.runs import Campaign, run_campaign, write_atomically
from fl_lightning.runs import Cell as Run

__all__ = [
    "Judged",
    "Reproduction",
    "check_markers",
    "experiments",
    "find_tables",
    "plain",
    "reproduce",
    "write_verdicts",
]

SizeName = Literal["quick", "full"]
LIGHT = {"tracking.register": "never", "tracking.models": False, "tracking.checkpoint_every": 10}
"""Hundreds of small runs, of which the figures are wanted."""


class Judged(NamedTuple):
    """A claim with its verdict.

    Attributes:
        table: `paper:table`.
        claim: what was claimed.
        found: mean and interval over the seeds (of the paired difference, for an order); None where nothing was measured.
        verdict: by the rule of `papers.verdict`.
    """

    table: str
    claim: Claim
    found: Interval | None
    verdict: Verdict


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
        """One row a claim: number, words, printed value, measured interval, verdict, adjusted p-value."""
        return [
            (
                one.claim.id,
                one.claim.says,
                "" if one.claim.printed is None else f"{one.claim.printed:g}",
                str(one.found or "-"),
                one.verdict + (f" (follows: {one.claim.follows})" if one.claim.follows else ""),
                "" if math.isnan(rate) else f"{rate:.3f}" if rate >= 0.001 else "< 0.001",
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
        lines = ["| claim | | printed | measured | verdict | p, adjusted |", "|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows()]
        return "\n".join(lines) + "\n"

    def picture(self) -> Figure:
        """Printed and measured values side by side."""
        shown = [one for one in self.judged if one.claim.printed is not None and one.found]
        figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * max(1, len(shown))), layout="constrained")
        places = range(len(shown))
        means = [one.found.mean if one.found else float("nan") for one in shown]
        halves = [one.found.half if one.found else float("nan") for one in shown]
        axes.errorbar(means, places, xerr=halves, fmt="o", label="measured, 95 %", capsize=3)
        printed = [float(one.claim.printed or 0.0) for one in shown]
        axes.plot(printed, list(places), "x", color="black", label="printed")
        axes.set_yticks(places, [f"{one.claim.id}  {one.claim.says}" for one in shown], fontsize=7)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.legend()
        return figure


def find_tables(words: Sequence[str]) -> dict[str, PaperTable]:
    """Tables by name: `cmp`, `cmp:table-4`, or a path to a YAML file; all shipped ones where no word is given.

    Raises:
        ConfigError: no such paper or table, or something wrong in its file.
    """
    shipped = {f"{path.parent.name}:{path.stem}": path for path in sorted((CONFIGS / "paper").glob("*/*.yaml"))}
    chosen: dict[str, str] = {}
    for word in words or sorted({name.partition(":")[0] for name in shipped}):
        own = {name: str(path) for name, path in shipped.items() if word in (name, name.partition(":")[0])}
        if not own and not word.endswith(".yaml"):
            names = [*{name.partition(":")[0]: None for name in shipped}, *shipped]
            raise ConfigError(f"no paper or table {word!r}; {suggest(word, names)}")
        chosen |= own or {word: word}
    return {name: _table(name, path) for name, path in chosen.items()}


def _table(name: str, path: str) -> PaperTable:
    with errors_under(name):
        tree = read_yaml("paper", path)
        try:
            return PaperTable.model_validate(tree)
        except ValidationError as error:
            explain(error, PaperTable)


def experiments(table: PaperTable, size: SizeName, fast: bool = False) -> dict[TableCell, Experiment]:
    """The experiment of every cell that this size runs, with its seeds.

    Raises:
        ConfigError: naming the cell that cannot run.
    """
    if size not in table.sizes:
        raise ConfigError(f"has no size {size!r}; {suggest(size, table.sizes)}")
    own, base = table.sizes[size], load(table.base)
    cells = {}
    for row, by_row in table.rows.items():
        if row in own.leave_out:
            continue
        for column, by_column in table.columns.items():
            changes = own.changes | by_row | own.rows.get(row, {}) | by_column
            changes.pop("over", None)
            with errors_under(f"{row} | {column}"):
                experiment = base.override({"seeds": list(own.seeds), **LIGHT, **changes})
            cells[TableCell(row, column)] = experiment.faster() if fast else experiment
    return cells


def reproduce(
    tables: Mapping[str, PaperTable],
    size: SizeName = "quick",
    jobs: Jobs = 1,
    fast: bool = False,
    progress: Callable[[int, int, Run | None], None] = lambda done, total, cell: None,
) -> Reproduction:
    """Run what is not in MLflow yet, and judge every claim by what MLflow holds.

    Equal experiments are run once, whichever tables need them, and finished runs of earlier calls are not run again.

    Args:
        tables: by name.
        size: `quick` or `full`.
        jobs: worker processes, or `ray`.
        fast: synthetic data and few rounds: does it run at all?
        progress: told how many of all runs are done.

    Raises:
        ConfigError: a cell that cannot run, before any is started.
    """
    cells: dict[tuple[str, TableCell], Experiment] = {}
    for name, table in tables.items():
        with errors_under(name):
            cells |= {(name, cell): one for cell, one in experiments(table, size, fast).items()}
    named: dict[str, Experiment] = {}
    label: dict[str, str] = {}  # fingerprint -> name of the experiment that all equal cells share
    for (name, cell), one in cells.items():
        label.setdefault(one.fingerprint(), f"{name} | {cell.row} | {cell.column}".removesuffix(" | "))
        named[label[one.fingerprint()]] = one
    title = f"reproduce ({size}): {', '.join(tables)}"
    campaign = run_campaign(named, title, jobs, progress, reuse=True)
    store = tracking.client()

    known: dict[tuple[str, str], dict[int, float]] = {}  # (run, metric) -> history

    def histories(name: str, cell: TableCell, metric: str) -> dict[int, dict[int, float]]:
        one = cells.get((name, cell))
        found = {} if one is None else _runs(campaign, label[one.fingerprint()])
        for run_id in found.values():
            if (run_id, metric) not in known:
                known[run_id, metric] = tracking.history(store, run_id, metric)
        return {seed: own for seed, run_id in found.items() if (own := known[run_id, metric])}

    def figures(name: str, cell: TableCell, reading: Reading) -> dict[int, float]:
        seen = histories(name, cell, reading.metric)
        found = {seed: read(own, cells[name, cell].rounds, reading.over) for seed, own in seen.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    judged = []
    for name, table in tables.items():
        for claim in table.claims():
            pairs = zip(claim.cells, claim.readings, strict=True)
            found = measured(claim, [figures(name, cell, reading) for cell, reading in pairs])
            judged.append(Judged(name, claim, found, verdict(claim, found)))
    outcome = Reproduction(campaign.run_id, tuple(judged), tuple(campaign.failures.values()))
    store.log_text(campaign.run_id, outcome.markdown(), "verdicts.md")
    store.log_text(campaign.run_id, json.dumps(plain(outcome), indent=1), "verdicts.json")
    tracking.log_picture(store, campaign.run_id, outcome.picture(), "verdicts.png")
    for name, table in tables.items():
        asked = {
            (cell, reading.metric) for claim in table.claims() for cell in claim.cells for reading in claim.readings
        }
        seen = {where: list(of_seeds.values()) for where in asked if (of_seeds := histories(name, *where))}
        if seen:
            file = f"figures/{Path(name).stem.replace(':', '-')}.png"
            tracking.log_picture(store, campaign.run_id, draw_table(table, seen), file)
    return outcome


def _runs(campaign: Campaign, name: str) -> dict[int, str]:
    return {cell.seed: outcome.run_id for cell, outcome in campaign.outcomes.items() if cell.name == name}


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
            "n": one.found.n if one.found else 0,
            "verdict": one.verdict,
            "follows": one.claim.follows,
            "p_adjusted": None if math.isnan(rate) else rate,
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
