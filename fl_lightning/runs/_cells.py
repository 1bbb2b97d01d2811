"""Experiments with their seeds as runs under a parent: what is finished is kept, what was killed goes on."""

from collections.abc import Mapping
from typing import NamedTuple

from fl_lightning import tracking
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.runs import _run as single
from fl_lightning.runs._run import Outcome, Under, Watch, no_observers, one_seed

__all__ = ["Cell", "begun", "cells_of", "run_cell"]


class Cell(NamedTuple):
    """One run under a parent: a named experiment with a seed."""

    name: str
    seed: int


def cells_of(experiments: Mapping[str, Experiment]) -> dict[Cell, Experiment]:
    """The experiment of every cell: each with its `seeds`, or with its `seed`."""
    return {
        Cell(name, seed): one_seed(experiment, seed)
        for name, experiment in experiments.items()
        for seed in experiment.seeds or (experiment.seed,)
    }


def begun(parent: str) -> dict[Cell, str]:
    """Runs under a parent; the latest where a cell was run twice."""
    found = tracking.named_children(tracking.client(), parent)
    return {Cell(name, seed): run_id for (name, seed), run_id in found.items()}


def run_cell(
    cell: Cell, experiment: Experiment, run_id: str | None, under: Under, watch: Watch = no_observers
) -> Outcome:
    """Run a cell, or what is left of it.

    Args:
        cell: its name.
        experiment: of one seed.
        run_id: its run where it was begun before.
        under: where it belongs in the store.
        watch: makes further observers.
    """
    if run_id:
        try:
            return single.resume_one(run_id, watch)
        except ConfigError:
            pass  # it failed, or was killed before its first checkpoint: run it again
    return single.run_one(experiment, cell.name, watch, under)
