"""Who runs the trials of a search: this process, others beside it, or a Ray cluster."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import datetime
from typing import cast

import optuna
from optuna.trial import TrialState

from fl_lightning import tracking
from fl_lightning.parallel import Jobs, share_cores, side_by_side
from fl_lightning.parallel import _ray as cluster
from fl_lightning.search._budget import expected_trials, used_up
from fl_lightning.search._ended import DONE, MEASURED, feasible, killed, was_killed
from fl_lightning.search._study import PLACE, Task, quiet
from fl_lightning.search._trials import TrialFailedError, run_trial

REFUSALS = 3
"""Trials in a row whose result is refused before a search is given up."""

log = logging.getLogger("fl_lightning")

Progress = Callable[[optuna.Study, int], None]


def run_trials(task: Task, study: optuna.Study, progress: Progress) -> None:
    """Trials until there are as many as asked for: here, or in worker processes on this machine or a Ray cluster."""
    log_course(task, study)  # what a killed process had no time for
    _run_missing(task, study, progress)
    log_course(task, study)


def _run_missing(task: Task, study: optuna.Study, progress: Progress) -> None:
    search = task.experiment.sweep
    trials = study.get_trials(deepcopy=False, states=DONE)
    missing = max(0, search.trials + killed(trials) - len(trials))
    if not missing:
        return
    workers = min(missing, cluster.processors() if search.jobs == "ray" else search.jobs)
    if used_up(search, trials, workers):
        return
    task = replace(task, workers=workers)

    def told() -> None:
        progress(study, expected_trials(search, study.get_trials(deepcopy=False), workers))

    if search.jobs == "ray":
        _side_by_side(task, "ray", workers, told)
    elif workers == 1:
        _work(task, told)
    else:
        _side_by_side(task, workers, workers, told)


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
    refused = 0
    while True:
        progress()
        trials = study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in trials) >= settings.trials + killed(trials):
            return
        if used_up(settings, trials, task.workers):
            return
        begun: list[int] = []

        def objective(trial: optuna.Trial, begun: list[int] = begun) -> float | Sequence[float]:
            begun.append(trial.number)
            return run_trial(trial, task)

        study.optimize(objective, n_trials=1, catch=(TrialFailedError,), gc_after_trial=True)
        # Optuna may refuse what a trial came to: that is no kill, and must not be tried for ever.
        ended = study.get_trials(deepcopy=False)[begun[0]]
        if ended.state == TrialState.FAIL:
            log.warning(
                "trial %d came to nothing: %s", ended.number, ended.user_attrs.get("error", "Optuna refused it")
            )
        refused = refused + 1 if was_killed(ended) else 0
        if refused == REFUSALS:
            raise RuntimeError(f"Optuna took no result of the last {REFUSALS} trials")
        log_course(task, study, begun[0])


def log_course(task: Task, study: optuna.Study, number: int | None = None) -> None:
    """Put the course of a search into its run, as far as it is not there: all of it, or what one trial adds."""
    points = course(study, task.experiment.sweep.metrics)
    chosen = [point for trial, point in points if number in (None, trial)]
    tracking.log_missing(tracking.client(), task.run_id, chosen)


def course(study: optuna.Study, metrics: Sequence[str]) -> Iterator[tuple[int, tracking.Point]]:
    """Every ended trial's number with its figure, and with the best of each metric until then that held the constraints.

    Step and time of a point are the trial's place and end, so that whoever logs it, and how often, it is one and the same.
    """
    ended = [trial for trial in study.get_trials(deepcopy=False, states=DONE) if not was_killed(trial)]
    better = [max if direction.name == "MAXIMIZE" else min for direction in study.directions]
    best: dict[str, float] = {}
    for trial in sorted(ended, key=lambda trial: (trial.datetime_complete, trial.number)):
        place = trial.system_attrs.get(PLACE, trial.number)  # killed trials leave no gap
        time = cast(datetime, trial.datetime_complete).timestamp()
        if trial.state in MEASURED and trial.values:
            yield trial.number, tracking.Point(f"sweep/{metrics[0]}", trial.values[0], place, time)
        if trial.state == TrialState.COMPLETE and feasible(trial):
            for choose, name, value in zip(better, metrics, trial.values, strict=True):
                best[name] = choose(value, best.get(name, value))
        for name, value in best.items():
            yield trial.number, tracking.Point(f"best/{name}", value, place, time)
