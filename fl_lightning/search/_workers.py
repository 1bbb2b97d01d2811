"""Who runs the trials of a search: this process, others beside it, or a Ray cluster."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool

import optuna
from optuna.trial import TrialState

from fl_lightning import tracking
from fl_lightning.parallel import Jobs, share_cores, side_by_side
from fl_lightning.parallel import _ray as cluster
from fl_lightning.search._study import DONE, MEASURED, PLACE, Task, feasible, killed, quiet, was_killed
from fl_lightning.search._trials import TrialFailedError, run_trial

REFUSALS = 3
"""Trials in a row whose result is refused before a search is given up."""

log = logging.getLogger("fl_lightning")

Progress = Callable[[optuna.Study, int], None]


def run_trials(task: Task, study: optuna.Study, progress: Progress) -> None:
    """Trials until there are as many as asked for: here, or in worker processes on this machine or a Ray cluster."""
    search = task.experiment.sweep
    trials = study.get_trials(deepcopy=False, states=DONE)
    missing = max(0, search.trials + killed(trials) - len(trials))
    if not missing:
        return
    workers = min(missing, cluster.processors() if search.jobs == "ray" else search.jobs)
    if search.jobs == "ray":
        _side_by_side(task, "ray", workers, lambda: progress(study, search.trials))
    elif workers == 1:
        _work(task, lambda: progress(study, search.trials))
    else:
        _side_by_side(task, workers, workers, lambda: progress(study, search.trials))


def _side_by_side(task: Task, jobs: Jobs, workers: int, progress: Callable[[], None]) -> None:
    """Workers beside this process; one that is killed does not stop the others, one that fails ends the search."""
    with side_by_side(jobs) as submit:
        waiting: set[Future[None]] = {submit(_work_alone, task, jobs) for _ in range(workers)}
        while waiting:
            progress()
            done, waiting = wait(waiting, timeout=1)
            for worker in done:
                try:
                    worker.result()
                except BrokenProcessPool:
                    log.warning("a worker of the search was killed, or ran out of memory; %d are left", len(waiting))
    progress()


def _work_alone(task: Task, jobs: Jobs) -> None:
    """A worker process: its share of the cores, no output of its own."""
    share_cores(jobs)
    quiet()
    _work(task, lambda: None)


def _work(task: Task, progress: Callable[[], None]) -> None:
    """Trials until enough are done or under way."""
    study = task.open()
    settings = task.experiment.sweep
    store = tracking.client()
    refused = 0
    while True:
        progress()
        trials = study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in trials) >= settings.trials + killed(trials):
            return
        begun: list[int] = []

        def objective(trial: optuna.Trial, begun: list[int] = begun) -> float | Sequence[float]:
            begun.append(trial.number)
            return run_trial(trial, task)

        study.optimize(objective, n_trials=1, catch=(TrialFailedError,), gc_after_trial=True)
        # Optuna may refuse what a trial came to: that is no kill, and must not be tried for ever.
        refused = refused + 1 if was_killed(study.get_trials(deepcopy=False)[begun[0]]) else 0
        if refused == REFUSALS:
            raise RuntimeError(f"Optuna took no result of the last {REFUSALS} trials")
        measured = study.get_trials(deepcopy=False, states=MEASURED)
        if measured and measured[-1].values:
            last = measured[-1]
            place = last.system_attrs.get(PLACE, last.number)  # killed trials leave no gap
            store.log_metric(task.run_id, f"sweep/{settings.metrics[0]}", last.values[0], step=place)
        for name, value in best_so_far(study, settings.metrics).items():
            store.log_metric(task.run_id, f"best/{name}", value, step=begun[0])


def best_so_far(study: optuna.Study, metrics: Sequence[str]) -> dict[str, float]:
    """The best figure of each metric among the trials that came to their end and held the constraints."""
    whole = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if feasible(trial)]
    best = [max if direction.name == "MAXIMIZE" else min for direction in study.directions]
    if not whole:
        return {}
    return {name: best[place](trial.values[place] for trial in whole) for place, name in enumerate(metrics)}
