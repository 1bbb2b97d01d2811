"""The papers' tables and figures, run again: `fl-lightning reproduce PAPER[:TABLE]`."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_lightning import tracking
from fl_lightning.config import Experiment, Seed
from fl_lightning.errors import ConfigError, errors_under, suggest
from fl_lightning.papers._claims import PaperTable, SizeName, TableCell
from fl_lightning.papers._cost import cost
from fl_lightning.papers._pictures import draw_table
from fl_lightning.papers._records import Records, recorded
from fl_lightning.papers._verdicts import Reproduction, TableRuns, judge, plain
from fl_lightning.parallel import Jobs
from fl_lightning.paths import results_folder
from fl_lightning.runs import Campaign, Outcome, one_seed, run_campaign
from fl_lightning.runs import Cell as Run

__all__ = ["reproduce"]

Wanted = Mapping[tuple[str, TableCell], tuple[Seed, ...]]
"""(table, cell) -> the seeds that it is to be run with."""
Progress = Callable[[int, int, Run | None], None]


@dataclass
class Shared:
    """An experiment with all cells that it is.

    Attributes:
        experiment: with the seeds that any of the cells wants.
        places: the cells, (table, cell).
    """

    experiment: Experiment
    places: list[tuple[str, TableCell]] = field(default_factory=list)


def reproduce(
    tables: Mapping[str, PaperTable],
    size: SizeName = "quick",
    jobs: Jobs = 1,
    fast: bool = False,
    progress: Progress = lambda done, total, cell: None,
    records: Records | None = None,
    tell: Callable[[str], None] | None = None,
) -> Reproduction:
    """Run what is neither recorded nor in MLflow yet, record it, and judge every claim by the records.

    Equal experiments are run once, whichever tables need them. While a claim is undecided its cells run with further seeds,
    see `Size.up_to`. A claim is decided from the largest size whose runs are all recorded.

    Args:
        tables: by name.
        size: which runs are made: `quick`, `reduced` or `full`.
        jobs: worker processes, or `ray`.
        fast: synthetic data and few rounds: does it run at all? Nothing is recorded.
        progress: told how many of all runs are done.
        records: where runs are read from and recorded; None: the folder `results`.
        tell: told what the runs will cost, measured on first rounds; None: nothing is measured.

    Raises:
        ConfigError: a table without this size, or a cell that cannot run, before any is started.
    """
    if records is None:
        records = Records() if fast else Records(results_folder())
    runs = {name: TableRuns(name, table, records, fast) for name, table in tables.items()}
    wanted: Wanted = {}
    for name, own in runs.items():
        with errors_under(name):
            if size not in own.table.sizes:
                raise ConfigError(f"has no size {size!r}; {suggest(size, own.table.sizes)}")
            wanted = {**wanted, **{(name, cell): own.table.sizes[size].seeds for cell in own.cells(size)}}
    failures: dict[Run, str] = {}
    parent = ""
    while wanted:
        before = len(records)
        campaign = _run(runs, wanted, size, jobs, progress, records, tell)
        parent = parent or campaign.run_id
        failures |= campaign.failures
        more = {} if fast else dict(_more(runs, size))
        wanted = more if len(records) > before or more != wanted else {}  # what fails is not tried for ever
    judged = tuple(one for own in runs.values() for one in judge(own, size))
    outcome = Reproduction(parent, judged, tuple(failures.values()))
    _log(outcome, runs, size)
    return outcome


def _run(
    runs: Mapping[str, TableRuns],
    wanted: Wanted,
    size: SizeName,
    jobs: Jobs,
    progress: Progress,
    records: Records,
    tell: Callable[[str], None] | None,
) -> Campaign:
    """Run what is wanted and not recorded; every run is recorded as soon as it has come to its end."""
    named = _shared(runs, wanted, size)
    skip = {
        Run(name, seed)
        for name, shared in named.items()
        for seed in shared.experiment.seeds
        if all(_known(runs[table], size, cell, seed, records) for table, cell in shared.places)
    }
    if tell:
        left = {
            name: [seed for seed in one.experiment.seeds if Run(name, seed) not in skip] for name, one in named.items()
        }
        costs = cost(
            {name: with_seeds(named[name].experiment, seeds) for name, seeds in left.items() if seeds}, jobs, records
        )
        tell(f"{len(skip)} runs are recorded; {costs}")

    def keep(run: Run, outcome: Outcome) -> None:
        shared = named[run.name]
        for table, cell in shared.places:
            single, metrics = one_seed(shared.experiment, run.seed), runs[table].asked.get(cell, ())
            records.add(table, [recorded(outcome.run_id, _words(cell), single, metrics)])

    title = f"reproduce ({size}): {', '.join(runs)}"
    every = {name: shared.experiment for name, shared in named.items()}
    return run_campaign(every, title, jobs, progress, reuse=True, skip=skip, done=keep)


def _shared(runs: Mapping[str, TableRuns], wanted: Wanted, size: SizeName) -> dict[str, Shared]:
    """The different experiments among what is wanted, by the name of their first cell."""
    by_digest: dict[str, Shared] = {}
    named: dict[str, Shared] = {}
    for (table, cell), seeds in wanted.items():
        config, experiment = runs[table].cells(size)[cell]
        if config not in by_digest:
            name = f"{table} | {cell.row} | {cell.column}".removesuffix(" | ")
            by_digest[config] = named[name] = Shared(with_seeds(experiment, seeds))
        shared = by_digest[config]
        shared.experiment = with_seeds(experiment, (*shared.experiment.seeds, *seeds))
        shared.places.append((table, cell))
    return named


def with_seeds(experiment: Experiment, seeds: Iterable[Seed]) -> Experiment:
    """The experiment with these seeds, each once."""
    return experiment.model_copy(update={"seeds": tuple(dict.fromkeys(seeds))})


def _known(runs: TableRuns, size: SizeName, cell: TableCell, seed: Seed, records: Records) -> bool:
    """Whether a run is recorded; what another table shares is put down in this one's file, too."""
    config, _ = runs.cells(size)[cell]
    metrics = runs.asked.get(cell, set())
    found = records.find(runs.name, config, seed, metrics)
    if found is None:
        return False
    own = records.of(runs.name).get((config, seed))
    if own is None or not metrics <= set(own.figures) or own.run != _words(cell):
        figures = {metric: found.figures[metric] for metric in sorted(metrics)}
        records.add(runs.name, [found.model_copy(update={"run": _words(cell), "figures": figures})])
    return True


def _words(cell: TableCell) -> str:
    return f"{cell.row} | {cell.column}".removesuffix(" | ")


def _more(runs: Mapping[str, TableRuns], size: SizeName) -> Iterator[tuple[tuple[str, TableCell], tuple[Seed, ...]]]:
    """Cells of undecided claims that may still get more seeds, with two more than they have.

    A process that was killed between the two leaves one: the other is run before the claim is judged, so that what is run does
    not depend on when it was killed.
    """
    for name, own in runs.items():
        limits = own.table.sizes[size]
        for claim in own.table.claims():
            judged = own.judge(size, claim)
            if judged.found is None or claim.follows:
                continue
            added = max(0, judged.found.n - len(limits.seeds))
            if judged.found.n < len(limits.every_seed) and (judged.verdict == "undecided" or added % 2):
                seeds = limits.seeds_up_to(len(limits.seeds) + 2 * (added // 2 + 1))
                yield from (((name, cell), seeds) for cell in claim.cells)


def _log(outcome: Reproduction, runs: Mapping[str, TableRuns], size: SizeName) -> None:
    """Verdicts and figures as artifacts of the parent run."""
    store = tracking.client()
    store.log_text(outcome.run_id, outcome.markdown(), "verdicts.md")
    store.log_text(outcome.run_id, json.dumps(plain(outcome), indent=1), "verdicts.json")
    tracking.log_picture(store, outcome.run_id, outcome.picture(), "verdicts.png")
    for name, own in runs.items():
        asked = {(cell, metric) for cell, metrics in own.asked.items() for metric in metrics}
        seen = {
            where: [history for history in of_seeds.values() if history]
            for where in asked
            if any((of_seeds := own.histories(size, *where)).values())
        }
        if seen:
            file = f"figures/{Path(name).stem.replace(':', '-')}.png"
            tracking.log_picture(store, outcome.run_id, draw_table(own.table, seen), file)
