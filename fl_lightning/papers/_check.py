"""Records drawn at random and run again: `fl-lightning reproduce --check N`."""

import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fl_lightning import tracking
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.papers._claims import SIZES, PaperTable, Reading, TableCell, read
from fl_lightning.papers._records import VERSIONS, Record, Records
from fl_lightning.papers._verdicts import TableRuns
from fl_lightning.runs import one_seed

__all__ = ["TOLERANCE", "Check", "Rerun", "check"]

TOLERANCE = 0.05
"""What a figure that a claim reads may differ by on another kind of machine: so much, or this part of it where that is more."""
LARGEST = torch.finfo(torch.float64).max
"""What MLflow's store keeps for infinity."""


class Drawn(NamedTuple):
    """A record with the experiment that it is of."""

    table: str
    cell: TableCell
    record: Record
    experiment: Experiment
    readings: tuple[Reading, ...]


class Rerun(NamedTuple):
    """A record and what its run came to this time.

    Attributes:
        table: `paper:table`.
        record: of before.
        alike: whether device, processor, threads and versions are those of before, so that the same digits are expected.
        same: whether every figure of every round is the same to the last digit; times apart.
        difference: the largest one of a figure that a claim reads.
        ok: the same digits where the machine is alike, else no difference beyond `TOLERANCE`.
    """

    table: str
    record: Record
    alike: bool
    same: bool
    difference: float
    ok: bool

    def __str__(self) -> str:
        result = "same digits" if self.same else f"differs by up to {self.difference:.3g} in what claims read"
        expected = "" if self.same else ", on a like machine" if self.alike else ", on another kind of machine"
        return f"{'ok ' if self.ok else 'NOT'} {self.table} | {self.record.run}, seed {self.record.seed}: {result}{expected}"


@dataclass(frozen=True)
class Check:
    """Records that were run again.

    Attributes:
        reruns: one a record.
        fit: how many records could have been drawn.
        left_out: why -> how many records could not.
    """

    reruns: tuple[Rerun, ...]
    fit: int
    left_out: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether all came out as they should."""
        return all(rerun.ok for rerun in self.reruns)

    def lines(self) -> list[str]:
        """What happened, for people."""
        first = f"{len(self.reruns)} drawn of {self.fit} recorded runs; left out: {_why(self.left_out)}"
        return [first, *map(str, self.reruns)]


def _why(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "none"


def check(
    tables: Mapping[str, PaperTable], n: int, records: Records, minutes: float | None = None, seed: int = 0
) -> Check:
    """Draw records at random, run them again without looking at the old figures, and compare.

    Args:
        tables: whose records may be drawn.
        n: how many are drawn, at most.
        records: what to draw from.
        minutes: for all of them together; a record whose run took more than its share is left out. None: no limit.
        seed: of the draw.

    Raises:
        ConfigError: no record can be drawn.
    """
    limit = math.inf if minutes is None else 60 * minutes / n
    fitting, left_out = _fitting(tables, records, limit)
    if not fitting:
        raise ConfigError(f"no record can be run again: {_why(left_out)}")
    drawn = random.Random(seed).sample(fitting, min(n, len(fitting)))
    return Check(tuple(map(_again, drawn)), len(fitting), left_out)


def _fitting(tables: Mapping[str, PaperTable], records: Records, seconds: float) -> tuple[list[Drawn], dict[str, int]]:
    """Records that can be run again here in so many seconds, each once, and how many cannot, by reason."""
    here = tracking.environment()["device"]
    unknown, elsewhere = "are of a configuration that no table has today", "ran on another device"
    left_out: dict[str, set[tuple[str, int]]] = {
        f"take longer than {seconds:.0f} s": set(),
        elsewhere: set(),
        unknown: set(),
    }
    found: dict[tuple[str, int], Drawn] = {}
    for name, table in tables.items():
        cells = _cells(TableRuns(name, table, records))
        for (config, number), record in sorted(records.of(name).items()):
            if config not in cells:
                left_out[unknown].add(record.key)
            elif record.device != here:
                left_out[elsewhere].add(record.key)
            elif record.seconds > seconds:
                left_out[f"take longer than {seconds:.0f} s"].add(record.key)
            else:
                cell, experiment, readings = cells[config]
                drawn = Drawn(name, cell, record, one_seed(experiment, number), readings)
                found[record.key] = _both(found[record.key], drawn) if record.key in found else drawn
    return list(found.values()), {reason: len(keys) for reason, keys in left_out.items()}


def _both(first: Drawn, second: Drawn) -> Drawn:
    """A run that two tables share, with all that either reads of it."""
    figures = {**second.record.figures, **first.record.figures}
    record = first.record.model_copy(update={"figures": figures})
    return first._replace(record=record, readings=(*first.readings, *second.readings))


def _cells(runs: TableRuns) -> dict[str, tuple[TableCell, Experiment, tuple[Reading, ...]]]:
    """Digest -> cell, experiment and all that claims read of it, over all sizes."""
    readings: dict[TableCell, tuple[Reading, ...]] = {}
    for claim in runs.table.claims():
        for cell, reading in zip(claim.cells, claim.readings, strict=True):
            readings[cell] = (*readings.get(cell, ()), reading)
    return {
        config: (cell, experiment, readings.get(cell, ()))
        for size in SIZES
        for cell, (config, experiment) in runs.cells(size).items()
    }


def _again(drawn: Drawn) -> Rerun:
    """Run a record's experiment anew and compare."""
    record, names = drawn.record, [name for name in drawn.record.figures if not name.startswith("time/")]
    with _threads(record.threads):
        history = Federation(drawn.experiment).run().history
        about = tracking.environment()
    here = record.model_copy(
        update={
            "device": about["device"],
            "cpu": about["cpu"],
            "threads": int(about["threads"]),
            "versions": {name: about[name] for name in VERSIONS},
        }
    )
    figures = {name: {at: _stored(one[name]) for at, one in enumerate(history) if name in one} for name in names}
    same = all(_equal(record.history(name), figures[name]) for name in names)
    alike = record.machine() == here.machine()
    rounds = drawn.experiment.rounds
    pairs = [
        (read(record.history(one.metric), rounds, one.over), read(figures[one.metric], rounds, one.over))
        for one in drawn.readings
        if one.metric in figures
    ]
    both = [(before, now) for before, now in pairs if before is not None and now is not None]
    differences = [abs(before - now) for before, now in both]
    near = len(both) == sum(pair != (None, None) for pair in pairs) and all(
        abs(before - now) <= TOLERANCE * max(1.0, abs(before)) for before, now in both
    )
    return Rerun(drawn.table, record, alike, same, max(differences, default=0.0), same if alike else near)


def _stored(value: float) -> float:
    """A figure as MLflow's store keeps it: infinity becomes the largest number."""
    return math.copysign(LARGEST, value) if math.isinf(value) else value


def _equal(before: Mapping[int, float], now: Mapping[int, float]) -> bool:
    """Whether two histories are the same to the last digit; NaN is NaN."""
    return before.keys() == now.keys() and all(
        one == now[at] or (math.isnan(one) and math.isnan(now[at])) for at, one in before.items()
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with as many threads as then, where there are so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, os.cpu_count() or 1) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
