"""Who runs the trials of a search: this process, others beside it, or a Ray cluster."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress

import optuna
from optuna.trial import TrialState

from fl_lightning import tracking
from fl_lightning.config import load
from fl_lightning.parallel import Jobs, begin_worker, settings, share_cores
from fl_lightning.parallel import _ray as cluster
from fl_lightning.parallel._endings import GOODBYE_SECONDS
from fl_lightning.search._study import DONE, MEASURED, Task, feasible, killed, quiet, was_killed
from fl_lightning.search._trials import TrialFailedError, run_trial

REFUSALS = 3
"""Trials in a row whose result is refused before a search is given up."""

Progress = Callable[[optuna.Study, int], None]


def run_trials(task: Task, study: optuna.Study, progress: Progress) -> None:
    search = load(task.tree).sweep
    trials = study.get_trials(deepcopy=False, states=DONE)
    missing = max(0, search.trials + killed(trials) - len(trials))
    if search.jobs == "ray" and missing:
        _on_ray(task, min(missing, cluster.processors()), lambda: progress(study, search.trials))
    elif missing == 1 or (missing and search.jobs == 1):
        _work(task, lambda: progress(study, search.trials))
    elif isinstance(search.jobs, int) and missing:
        _beside(task, min(missing, search.jobs), lambda: progress(study, search.trials))


def _beside(task: Task, jobs: int, progress: Callable[[], None]) -> None:
    """Worker processes on this machine; one that dies does not stop the others."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_worker, args=(settings(), task, jobs), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            progress()
            time.sleep(1)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(GOODBYE_SECONDS)
            worker.kill()
            worker.join()
    progress()


def _on_ray(task: Task, workers: int, progress: Callable[[], None]) -> None:
    """Workers wherever Ray has room; one that dies is begun again."""
    with cluster.tasks() as submit:
        waiting: set[Future[None]] = {submit(_work_alone, task, "ray") for _ in range(workers)}
        while waiting:
            progress()
            done, waiting = wait(waiting, timeout=1)
            for worker in done:
                worker.result()
    progress()


def _worker(stores: dict[str, str], task: Task, jobs: Jobs) -> None:
    """A worker process on this machine; told to end, it goes quietly."""
    begin_worker(stores)
    with suppress(KeyboardInterrupt):
        _work_alone(task, jobs)


def _work_alone(task: Task, jobs: Jobs) -> None:
    """A worker process: its share of the cores, no output of its own."""
    share_cores(jobs)
    quiet()
    _work(task, lambda: None)


def _work(task: Task, progress: Callable[[], None]) -> None:
    """Trials until enough are done or under way."""
    study = task.open()
    experiment = load(task.tree)
    store = tracking.client()
    first = experiment.sweep.metrics[0]
    refused = 0
    while True:
        progress()
        trials = study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in trials) >= experiment.sweep.trials + killed(trials):
            return
        begun: list[int] = []

        def objective(trial: optuna.Trial, begun: list[int] = begun) -> float | Sequence[float]:
            begun.append(trial.number)
            return run_trial(trial, task, experiment)

        study.optimize(objective, n_trials=1, catch=(TrialFailedError,), gc_after_trial=True)
        # Optuna may refuse what a trial came to: that is no kill, and must not be tried for ever.
        refused = refused + 1 if was_killed(study.get_trials(deepcopy=False)[begun[0]]) else 0
        if refused == REFUSALS:
            raise RuntimeError(f"Optuna took no result of the last {REFUSALS} trials")
        measured = study.get_trials(deepcopy=False, states=MEASURED)
        if measured and measured[-1].values:
            store.log_metric(task.run_id, f"sweep/{first}", measured[-1].values[0], step=measured[-1].number)
        for name, value in best_so_far(study, experiment.sweep.metrics).items():
            store.log_metric(task.run_id, f"best/{name}", value, step=begun[0])


def best_so_far(study: optuna.Study, metrics: Sequence[str]) -> dict[str, float]:
    """The best figure of each metric among the trials that came to their end and held the constraints."""
    whole = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if feasible(trial)]
    best = [max if direction.name == "MAXIMIZE" else min for direction in study.directions]
    if not whole:
        return {}
    return {name: best[place](trial.values[place] for trial in whole) for place, name in enumerate(metrics)}
