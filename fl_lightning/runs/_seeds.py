"""Runs as they are asked for: one, or one a seed with mean and interval over all of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fl_lightning import tracking
from fl_lightning.config import Experiment
from fl_lightning.federation import Federation
from fl_lightning.metrics import bounds, interval
from fl_lightning.parallel import interruptible
from fl_lightning.runs._cells import begun, cells_of, run_cell
from fl_lightning.runs._checkpoint import check_room, run_folder
from fl_lightning.runs._run import (
    ALONE,
    Outcome,
    Under,
    Watch,
    continue_run,
    finished_outcome,
    held,
    is_begun,
    no_observers,
    one_seed,
    recall,
    remember,
    run_one,
)

__all__ = ["resume", "run"]


@interruptible()
def run(
    experiment: Experiment,
    name: str = "experiment",
    watch: Watch = no_observers,
    under: Under = ALONE,
    warmups: Path | None = None,
) -> Outcome:
    """A tracked run, or one run a seed under a parent where `seeds` asks for it.

    Args:
        experiment: the configuration.
        name: what the experiment is called in tables.
        watch: makes further observers.
        under: where it belongs in the store; without `seeds` only.
        warmups: folder of clean rounds that runs before the attack share; None: every run does its own.

    Raises:
        ConfigError: anything wrong with configuration, data or disk, before a run is created.
        TrackingGoneError: the tracking server went away for good; the run can be resumed.
    """
    if not experiment.seeds:
        return run_one(experiment, name, watch, under, warmups)
    store = tracking.client()
    check_room(Federation(one_seed(experiment, experiment.seeds[0])))  # bad input shows before a run exists
    run_id = tracking.create_run(store, experiment, tracking.run_name(experiment), "seeds", **{"fl.experiment": name})
    remember(run_id, experiment, name)
    return _run_seeds(run_id, experiment, name, watch)


@interruptible()
def resume(run_id: str, watch: Watch = no_observers) -> Outcome:
    """Continue a run where its last checkpoint left it; a finished run just gives its outcome.

    Raises:
        ConfigError: there is no such run, it runs elsewhere, or its folder is gone.
    """
    if not is_begun(run_id):
        return finished_outcome(run_id)
    experiment, name = recall(run_id)
    if experiment.seeds:
        return _run_seeds(run_id, experiment, name, watch)
    return continue_run(run_id, Federation(experiment), name, watch)


def _run_seeds(run_id: str, experiment: Experiment, name: str, watch: Watch) -> Outcome:
    """The runs of all seeds that are not finished yet, then mean and interval on the parent."""
    store = tracking.client()
    with held(run_id), tracking.ended_as_it_is(store, run_id):
        tracking.reopen(store, run_id)
        known = begun(run_id)
        cells = cells_of({name: experiment}).items()
        outcomes = [
            run_cell(cell, one, known.get(cell), Under(run_id, title=f"seed {cell.seed}"), watch) for cell, one in cells
        ]
        spread = {metric: interval(values, bounds(metric)) for metric, values in _by_metric(outcomes).items()}
        tracking.log_summary(store, run_id, spread)
        tracking.end_run(store, run_id, "FINISHED")
    shutil.rmtree(run_folder(run_id))
    metrics = {metric: one.mean for metric, one in spread.items()}
    return Outcome(run_id, name, experiment.planned_rounds, metrics, seeds=tuple(outcomes))


def _by_metric(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    shared = set.intersection(*(set(outcome.metrics) for outcome in outcomes))
    return {metric: [outcome.metrics[metric] for outcome in outcomes] for metric in sorted(shared)}
