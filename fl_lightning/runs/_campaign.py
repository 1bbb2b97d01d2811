"""Many named experiments as one: run in parallel, under one MLflow parent, continued where it was left."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient

from fl_lightning import tracking
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError, errors_under
from fl_lightning.parallel import Jobs, exclusive, interruptible, share_cores, side_by_side
from fl_lightning.paths import runs_folder
from fl_lightning.registry import refuse_unreachable
from fl_lightning.runs._cells import Cell, begun, cells_of, run_cell
from fl_lightning.runs._results import Shown
from fl_lightning.runs._run import Outcome, Under, reason

__all__ = ["Campaign", "Cell", "run_campaign"]


DEATHS = 3
"""How often the worker process of a run may die before the run is given up."""


@dataclass(frozen=True)
class Campaign(Shown):
    """What a campaign came to.

    Attributes:
        run_id: the MLflow parent.
        outcomes: one a cell, in the order of the experiments and seeds.
        failures: why a cell has no outcome.
    """

    run_id: str
    outcomes: dict[Cell, Outcome]
    failures: dict[Cell, str]

    def values(self, name: str, metric: str) -> dict[int, float]:
        """A metric of a named experiment by seed, where it was measured."""
        return {
            cell.seed: outcome.metrics[metric]
            for cell, outcome in self.outcomes.items()
            if cell.name == name and metric in outcome.metrics
        }


@interruptible()
def run_campaign(
    experiments: Mapping[str, Experiment],
    title: str,
    jobs: Jobs = 1,
    progress: Callable[[int, int, Cell | None], None] = lambda done, total, cell: None,
    reuse: bool = False,
    skip: Collection[Cell] = (),
    done: Callable[[Cell, Outcome], None] = lambda cell, outcome: None,
) -> Campaign:
    """Run every experiment with each of its seeds.

    The same experiments under the same title continue the same parent run: what is finished is not run again, what was killed
    goes on from its checkpoint, what failed is tried again. One failed cell does not stop the others.

    Args:
        experiments: by name; each runs with its `seeds`, or with its `seed`.
        title: name of the parent run.
        jobs: worker processes, or `ray`.
        progress: told how many of all cells are done, and which one was last.
        reuse: take finished runs with the same fingerprint from other campaigns, too.
        skip: cells whose figures are known from elsewhere.
        done: told of every cell that came to an end, while others still run.

    Raises:
        ConfigError: no experiments, or the same campaign runs in another process.
    """
    cells = cells_of(experiments)
    if not cells:
        raise ConfigError("a campaign needs at least one experiment")
    cells = {cell: experiment for cell, experiment in cells.items() if cell not in skip}
    if jobs != 1:
        for cell, experiment in cells.items():
            with errors_under(cell.name):
                refuse_unreachable(experiment)
    key = _key(title, experiments)
    store = tracking.client()
    outcomes: dict[Cell, Outcome] = {}
    failures: dict[Cell, str] = {}
    with exclusive(runs_folder() / f"campaign-{key}.lock", f"{title!r} is running in another process"):
        parent = _parent(store, next(iter(experiments.values())), title, key)
        tracking.reopen(store, parent)
        known = begun(parent)
        if reuse:
            finished_runs = tracking.finished(store, next(iter(experiments.values())).tracking.experiment)
            keys = {cell: one.fingerprint() for cell, one in cells.items()}
            known |= {cell: finished_runs[key] for cell, key in keys.items() if key in finished_runs}
        progress(0, len(cells), None)
        with tracking.ended_as_it_is(store, parent):
            for cell, finished in _work(cells, known, parent, jobs):
                if isinstance(finished, Outcome):
                    outcomes[cell] = finished
                    done(cell, finished)
                else:
                    failures[cell] = finished
                progress(len(outcomes) + len(failures), len(cells), cell)
        tracking.end_children(parent, "KILLED", "its process was killed")
        status = "FAILED" if failures else "FINISHED"
        tracking.end_run(store, parent, status, "; ".join(sorted(set(failures.values()))))
    return Campaign(parent, {cell: outcomes[cell] for cell in cells if cell in outcomes}, failures)


def _key(title: str, experiments: Mapping[str, Experiment]) -> str:
    """What the same campaign is found again by."""
    text = json.dumps([title, {name: experiment.digest() for name, experiment in experiments.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parent(store: MlflowClient, experiment: Experiment, title: str, key: str) -> str:
    return tracking.find_or_create(store, experiment, title, "campaign", ("fl.campaign", key))


def _work(
    cells: Mapping[Cell, Experiment], known: Mapping[Cell, str], parent: str, jobs: Jobs
) -> Iterator[tuple[Cell, Outcome | str]]:
    if jobs == 1:
        yield from ((cell, _attempt(cell, experiment, known.get(cell), parent)) for cell, experiment in cells.items())
        return
    deaths: Counter[Cell] = Counter()
    with side_by_side(jobs) as submit:

        def begin(cell: Cell, run_id: str | None) -> Future[Outcome | str]:
            return submit(_worker, jobs, cell, cells[cell], run_id, parent)

        waiting = {begin(cell, known.get(cell)): cell for cell in cells}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                cell = waiting.pop(future)
                try:
                    yield cell, future.result()
                except BrokenProcessPool:
                    deaths[cell] += 1
                    if deaths[cell] < DEATHS:  # what the worker was at goes on from its checkpoint
                        waiting[begin(cell, begun(parent).get(cell))] = cell
                    else:
                        yield cell, f"a worker process died {DEATHS} times: killed, or out of memory?"


def _worker(jobs: Jobs, *arguments: Any) -> Outcome | str:
    """A cell in another process, with its share of the cores."""
    share_cores(jobs)
    return _attempt(*arguments)


def _attempt(cell: Cell, experiment: Experiment, run_id: str | None, parent: str) -> Outcome | str:
    """The outcome of one cell, or why there is none."""
    try:
        return run_cell(cell, experiment, run_id, Under(parent, "cell"))
    except Exception as error:
        return f"{cell.name}, seed {cell.seed}: {reason(error)}"
