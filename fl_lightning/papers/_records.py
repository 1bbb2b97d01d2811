"""What the runs of the papers' tables came to, as data: one line a run, one sorted file a table.

A record counts as run: `reproduce` reads it first and skips the run, on whichever machine it was made.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_lightning import tracking
from fl_lightning.config import Experiment, Seed
from fl_lightning.parallel import in_turn
from fl_lightning.registry import Component, foreign, name_of, to_plain
from fl_lightning.runs import write_atomically

__all__ = ["Record", "Records", "chosen", "digest", "recorded"]

log = logging.getLogger("fl_lightning")

ASIDE = ("seed", "seeds", "paper", "sweep", "tracking")
"""Settings that a record is not told apart by: the seed has its own field, and no figure depends on the others."""
VERSIONS = ("python", "fl-lightning", "torch", "torchvision", "numpy")
Figures = Mapping[str, Mapping[int, float]]
"""Metric -> round (from 0) -> value."""


class Record(BaseModel):
    """One run.

    Attributes:
        run: row and column of the table, for people.
        config: `digest` of its configuration.
        seed: its seed.
        figures: metric -> one value a round; None where a round was not measured, an empty list where no round was.
        seconds: of its rounds together.
        revision: git revision of the source, with `+` where it had local changes.
        device: `cpu`, or the accelerator's name.
        cpu: kind of processor.
        threads: that torch computed with.
        versions: of Python and the libraries that figures depend on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    run: str
    config: str
    seed: Seed
    figures: dict[str, list[float | None]]
    seconds: float
    revision: str
    device: str
    cpu: str
    threads: int
    versions: dict[str, str]

    @property
    def key(self) -> tuple[str, int]:
        """What it is found by."""
        return self.config, self.seed

    def history(self, metric: str) -> dict[int, float]:
        """A metric: round (from 0) -> value."""
        return {at: value for at, value in enumerate(self.figures.get(metric, ())) if value is not None}

    def machine(self) -> tuple[Any, ...]:
        """Where the same digits are expected: device, processor, threads, versions (of this package by its revision only)."""
        libraries = {name: version for name, version in self.versions.items() if name != "fl-lightning"}
        return self.device, self.cpu, self.threads, tuple(sorted(libraries.items()))


Known = dict[tuple[str, int], Record]
"""The records of a table by digest and seed."""


class Records:
    """The records of a folder; None: in memory only.

    Every change is made under a lock, from the file as it is then, into a new file that replaces it: neither a second process
    nor one that is killed damages what is there.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._tables: dict[str, Known] = {}
        for path in sorted(folder.glob("*.jsonl")) if folder and folder.is_dir() else ():
            self._tables[path.stem] = _read(path)

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def of(self, table: str) -> Known:
        """The records of a table by digest and seed."""
        return self._tables.get(_stem(table), {})

    def find(self, table: str, config: str, seed: int, metrics: Iterable[str] = ()) -> Record | None:
        """The record of a run, of this table first, else of another one that shares it; None where it lacks a metric."""
        wanted = set(metrics)
        tables = [self.of(table), *self._tables.values()]
        found = (records[config, seed] for records in tables if (config, seed) in records)
        return next((record for record in found if wanted <= set(record.figures)), None)

    def seconds(self, config: str, device: str, cpu: str) -> float | None:
        """The median time that equal runs took on such a machine, whatever their seeds; None where there is none."""
        same = (record for records in self._tables.values() for record in records.values() if record.config == config)
        times = [one.seconds for one in same if (one.device, one.cpu) == (device, cpu)]
        return median(times) if times else None

    def add(self, table: str, records: Iterable[Record]) -> None:
        """Put records into the file of a table; figures that an older record of the same run holds besides are kept."""
        new = list(records)
        if new:
            self._change(table, lambda before: _merged(before, new))

    def drop(self, table: str, keys: Collection[tuple[str, int]]) -> None:
        """Take records out of the file of a table."""
        if keys:
            self._change(table, lambda before: {key: one for key, one in before.items() if key not in keys})

    def _change(self, table: str, change: Callable[[Known], Known]) -> None:
        stem = _stem(table)
        if self.folder is None:
            self._tables[stem] = change(self.of(table))
            return
        with in_turn(self.folder / ".lock"):
            path = self.folder / f"{stem}.jsonl"
            self._tables[stem] = after = change(_read(path) if path.is_file() else {})
            lines = (record.model_dump_json() for record in sorted(after.values(), key=lambda one: (one.run, *one.key)))
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _stem(table: str) -> str:
    """`cmp:table-4` as a file name; of a YAML file its name."""
    return Path(table).stem.replace(":", "-") if table.endswith(".yaml") else table.replace(":", "-")


def _merged(before: Known, new: Iterable[Record]) -> Known:
    merged = dict(before)
    for record in new:
        older = merged.get(record.key)
        figures = {**(older.figures if older else {}), **record.figures}
        merged[record.key] = record.model_copy(update={"figures": dict(sorted(figures.items()))})
    return merged


def _read(path: Path) -> Known:
    records: Known = {}
    damaged = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = Record.model_validate_json(line)
            records[record.key] = record
        except ValidationError:
            damaged.append(number)
    if damaged:
        log.warning("%s: lines %s are no records and are not used", path, ", ".join(map(str, damaged)))
    return records


def digest(experiment: Experiment) -> str:
    """Twelve hexadecimal digits of what the figures of a run depend on, its seed apart.

    Only what differs from the defaults counts, so that a setting that comes later, with a default, changes no digest. That a
    default stays what it is, a snapshot in the tests holds.
    """
    tree = {name: value for name, value in chosen(experiment).items() if name not in ASIDE}
    if versions := foreign(experiment):
        tree["plugins"] = versions
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def chosen(value: Any) -> Any:
    """What differs from the defaults, as plain values; a component keeps its name."""
    if isinstance(value, Mapping):
        return {key: chosen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [chosen(item) for item in value]
    known = getattr(type(value), "__pydantic_fields__", None)
    if known is None or (isinstance(value, Component) and not isinstance(value.to_dict(), dict)):
        return to_plain(value)  # such as `auto`, a component that is written as a word
    tree: dict[str, Any] = {"name": name_of(type(value))} if isinstance(value, Component) else {}
    for name, field in known.items():
        own = chosen(getattr(value, name))
        if field.is_required() or own != chosen(field.get_default(call_default_factory=True)):
            tree[name] = own
    return tree


def recorded(run_id: str, run: str, experiment: Experiment, metrics: Iterable[str]) -> Record:
    """The record of a finished run in MLflow.

    Args:
        run_id: which one.
        run: what it is called.
        experiment: of one seed.
        metrics: that claims read.
    """
    store = tracking.client()
    about = tracking.recorded_environment(store, run_id)
    figures = {metric: tracking.history(store, run_id, metric) for metric in {*metrics, "time/round"}}
    return Record(
        run=run,
        config=digest(experiment),
        seed=experiment.seed,
        figures={metric: in_line(figures[metric]) for metric in sorted(set(metrics))},
        seconds=round(math.fsum(figures["time/round"].values()), 3),
        revision=tracking.find_run(store, run_id).data.tags.get("mlflow.source.git.commit", "unknown"),
        device=about.get("device", "unknown"),
        cpu=about.get("cpu", "unknown"),
        threads=int(about.get("threads", 0)),
        versions={name: about[name] for name in VERSIONS if name in about},
    )


def in_line(history: Mapping[int, float]) -> list[float | None]:
    """One value a round, None where there is none."""
    return [history.get(at) for at in range(max(history, default=-1) + 1)]
