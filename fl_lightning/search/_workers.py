"""Who runs the trials of a search: this process, others beside it, or a Ray cluster."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

import optuna
from optuna.trial import TrialState

from fl_lightning import tracking
from fl_lightning.config import load
from fl_lightning.parallel import Jobs, share_cores
from fl_lightning.parallel import _ray as cluster
from fl_lightning.search._study import DONE, MEASURED, Task, killed, quiet
from fl_lightning.search._trials import run_trial

Progress = Callable[[optuna.Study, int], None]


def run_trials(task: Task, study: optuna.Study, progress: Progress) -> None:
    settings = load(task.tree).sweep
    trials = study.get_trials(deepcopy=False, states=DONE)
    missing = max(0, settings.trials + killed(trials) - len(trials))
    if settings.jobs == "ray" and missing:
        _on_ray(task, min(missing, cluster.processors()), lambda: progress(study, settings.trials))
    elif missing == 1 or (missing and settings.jobs == 1):
        _work(task, lambda: progress(study, settings.trials))
    elif isinstance(settings.jobs, int) and missing:
        _beside(task, min(missing, settings.jobs), lambda: progress(study, settings.trials))


def _beside(task: Task, jobs: int, progress: Callable[[], None]) -> None:
    """Worker processes on this machine; one that dies does not stop the others."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work_alone, args=(task, jobs), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            progress()
            time.sleep(1)
    finally:
        for worker in workers:
            worker.terminate()
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
    while True:
        progress()
        trials = study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in trials) >= experiment.sweep.trials + killed(trials):
            return
        study.optimize(
            lambda trial: run_trial(trial, task, experiment), n_trials=1, catch=(Exception,), gc_after_trial=True
        )
        measured = study.get_trials(deepcopy=False, states=MEASURED)
        if measured and measured[-1].values:
            store.log_metric(task.run_id, f"sweep/{first}", measured[-1].values[0], step=measured[-1].number)
