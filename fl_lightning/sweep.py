"""Everything Optuna: the search for the strongest attack, or for the best defense.

A study lives in `mlruns/optuna.db`, or where `FL_LIGHTNING_STUDIES` says, and is named after its configuration, so that the same
command continues it. The parent MLflow run is the study, every trial is a child run. The winner is run again on seeds that the
search never saw.
"""

import json
import multiprocessing
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna  # noqa: TID251
from optuna.trial import FrozenTrial, Trial, TrialState  # noqa: TID251

from fl_lightning import cluster, runs, studies, tracking
from fl_lightning.config import Experiment, load
from fl_lightning.federation import Federation
from fl_lightning.first_trials import check_first, enqueue_first, rank
from fl_lightning.metrics import Interval, interval
from fl_lightning.model_registry import find
from fl_lightning.paths import runs_folder, studies_url
from fl_lightning.processes import Jobs, share_cores
from fl_lightning.pruning import pruner
from fl_lightning.registry import ConfigError
from fl_lightning.space import changes, search_space
from fl_lightning.study_pictures import pictures
from fl_lightning.trials import Watcher, ask, attack_start, nobody, sampler, score, violations

__all__ = ["SweepOutcome", "search_space", "strongest", "sweep"]

DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
MEASURED = (TrialState.COMPLETE, TrialState.PRUNED)


Progress = Callable[[optuna.Study, int], None]


@dataclass(frozen=True)
class SweepOutcome:
    """What a search came to.

    Attributes:
        run_id: MLflow run of the study.
        study: name of the study in Optuna.
        trials: finished trials, best first and those given up last: number, values, changes, feasible, front (on the Pareto
            front), state, run_id.
        searched: the winner's figures in the search (optimistic), or None where no trial held the constraints.
        winner: the winner's changes of the configuration.
        confirmed: the winner's figures on unseen seeds, by metric.
        default: the figures of what is configured on the same seeds.
        gain: winner minus what is configured, paired by seed, in the first metric; positive is better.
        registered_model: `name/version` of the winner's poisoned model, or None.
        rounds_saved: share of the rounds of all trials that pruning and shared warm-up did not run.
    """

    run_id: str
    study: str
    trials: list[dict[str, Any]]
    searched: dict[str, float] | None
    winner: dict[str, Any]
    confirmed: dict[str, Interval]
    default: dict[str, Interval]
    gain: Interval
    registered_model: str | None
    rounds_saved: float

    @property
    def what(self) -> str:
        """What was searched."""
        return searched_slot(self.winner)

    @property
    def verdict(self) -> str:
        """Whether the search was worth it, in words; decided by the 95 % interval of the paired difference."""
        if self.gain.mean - self.gain.half > 0:
            return f"the winner beats the configured {self.what}"
        if self.gain.mean <= 0:
            return f"the winner does not beat the configured {self.what}"
        return f"the winner cannot be told from the configured {self.what} on these seeds"


@dataclass(frozen=True)
class _Task:
    """What a worker process needs to know."""

    name: str
    storage: str
    tree: dict[str, Any]
    label: str
    run_id: str

    @property
    def warmups(self) -> Path:
        return runs_folder() / "warmup" / self.name

    def open(self) -> optuna.Study:
        experiment = load(self.tree)
        settings = experiment.sweep
        # Workers must not repeat each other's random starts.
        seed = experiment.seed if settings.jobs == 1 else experiment.seed + (os.getpid() + uuid.getnode()) % 1000
        with studies.making_tables(self.storage):
            return optuna.create_study(
                storage=studies.storage(self.storage),
                study_name=self.name,
                sampler=sampler(settings.sampler, seed),
                pruner=pruner(settings, experiment.rounds - attack_start(experiment)),
                directions=list(settings.directions),
                load_if_exists=True,
            )


def sweep(
    experiment: Experiment,
    label: str = "experiment",
    watch: runs.Watch = lambda experiment: (),
    progress: Progress = lambda study, trials: None,
) -> SweepOutcome:
    """Search, confirm, register.

    Args:
        experiment: its `sweep` settings say what is searched.
        label: the name that the experiment was started by.
        watch: makes observers for the confirmation runs.
        progress: called about once a second with the study.

    Raises:
        ConfigError: bad input, before any trial.
    """
    with _searched(experiment, label, progress) as (task, study):
        return _conclude(task, study, watch)


def strongest(
    experiment: Experiment, label: str = "experiment", progress: Progress = lambda study, trials: None
) -> dict[str, Any]:
    """The winner's changes of the configuration, without confirmation: a finished study answers at once.

    Args:
        experiment: its `sweep` settings say what is searched.
        label: the name that the experiment was started by.
        progress: called about once a second with the study.

    Raises:
        ConfigError: bad input, or no trial came to its end.
    """
    with _searched(experiment, label, progress) as (task, study):
        changes: dict[str, Any] = _winner(task, study).user_attrs["changes"]
        return changes


@contextmanager
def _searched(experiment: Experiment, label: str, progress: Progress) -> Iterator[tuple[_Task, optuna.Study]]:
    """The study with all its trials; its run is ended afterwards."""
    _quiet()
    if experiment.sweep.against:
        attack = find(experiment.sweep.against).experiment.attack
        experiment = experiment.override({"attack": attack and attack.to_dict()})
    check_first(experiment)  # bad input shows before a study exists
    Federation(experiment)
    store = tracking.client()
    name = f"{tracking.registered_name(experiment)}-{_digest(experiment)}"
    task = _Task(name, studies_url(), experiment.to_dict(), label, "")
    study = task.open()

    def prepare() -> None:
        if "run_id" in study.user_attrs:
            _bury(study)
            return
        run_id = tracking.create_run(
            store, experiment, f"search: {tracking.registered_name(experiment)}", "study", **{"fl.experiment": label}
        )
        enqueue_first(study, task.storage, experiment)
        study.set_user_attr("run_id", run_id)

    with studies.searching(task.storage, name, prepare):
        run_id = study.user_attrs["run_id"]
        store.update_run(run_id, status="RUNNING")
        task = replace(task, run_id=run_id)
        _search(task, study, progress)
    yield task, study
    tracking.end_run(store, run_id, "FINISHED")
    shutil.rmtree(task.warmups, ignore_errors=True)


def searched_slot(drawn: Mapping[str, Any]) -> str:
    """What a search varies: the `attack`, the `defense` against it, or other `settings`."""
    slots = {path.split(".")[0] for path in drawn}
    if slots == {"attack"}:
        return "attack"
    return "defense" if slots <= {"defenses", "aggregator", "client", "server"} else "settings"


def _search(task: _Task, study: optuna.Study, progress: Progress) -> None:
    settings = load(task.tree).sweep
    trials = study.get_trials(deepcopy=False, states=DONE)
    missing = max(0, settings.trials + _killed(trials) - len(trials))
    if settings.jobs == "ray" and missing:
        _on_ray(task, min(missing, cluster.processors()), lambda: progress(study, settings.trials))
    elif missing == 1 or (missing and settings.jobs == 1):
        _work(task, lambda: progress(study, settings.trials))
    elif isinstance(settings.jobs, int) and missing:
        _beside(task, min(missing, settings.jobs), lambda: progress(study, settings.trials))


def _beside(task: _Task, jobs: int, progress: Callable[[], None]) -> None:
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


def _on_ray(task: _Task, workers: int, progress: Callable[[], None]) -> None:
    """Workers wherever Ray has room; one that dies is begun again."""
    with cluster.tasks() as submit:
        waiting: set[Future[None]] = {submit(_work_alone, task, "ray") for _ in range(workers)}
        while waiting:
            progress()
            done, waiting = wait(waiting, timeout=1)
            for worker in done:
                worker.result()
    progress()


def _work_alone(task: _Task, jobs: Jobs) -> None:
    """A worker process: its share of the cores, no output of its own."""
    share_cores(jobs)
    _quiet()
    _work(task, lambda: None)


def _work(task: _Task, progress: Callable[[], None]) -> None:
    """Trials until enough are done or under way."""
    study = task.open()
    experiment = load(task.tree)
    store = tracking.client()
    first = experiment.sweep.metrics[0]
    while True:
        progress()
        trials = study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in trials) >= experiment.sweep.trials + _killed(trials):
            return
        study.optimize(
            lambda trial: _trial(trial, task, experiment), n_trials=1, catch=(Exception,), gc_after_trial=True
        )
        measured = study.get_trials(deepcopy=False, states=MEASURED)
        if measured and measured[-1].values:
            store.log_metric(task.run_id, f"sweep/{first}", measured[-1].values[0], step=measured[-1].number)


def _trial(trial: Trial, task: _Task, base: Experiment) -> float | Sequence[float]:
    """One trial: a tracked child run of the study, or one with a child a seed."""
    settings = base.sweep
    drawn = changes(search_space(base), ask(trial))
    trial.set_user_attr("changes", drawn)
    try:
        experiment = base.override(drawn | {"tracking.register": "never", "evaluation.twin": False})
        title = f"trial {trial.number}: {experiment.attack.name if experiment.attack else 'no attack'}"
        measure = _several_seeds if settings.seeds else _one_seed
        measured = measure(trial, task, experiment, title)
    except Exception as error:
        trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:500])
        raise
    trial.set_user_attr("run_id", measured.run_id)
    trial.set_user_attr("rounds", measured.rounds)
    for metric, missed in measured.missed.items():
        trial.set_constraint(metric, missed)
    if measured.stopped:
        if not measured.stopped.startswith("pruned"):
            trial.set_user_attr("error", measured.stopped)
        if len(settings.metrics) == 1:
            raise optuna.TrialPruned(measured.stopped)
    return measured.values[0] if len(settings.metrics) == 1 else measured.values


class _Measured(NamedTuple):
    """What a trial came to: its run, rounds done, a value for each metric, by how much constraints are missed, why it ended."""

    run_id: str
    rounds: int
    values: list[float]
    missed: dict[str, float]
    stopped: str | None


def _one_seed(trial: Trial, task: _Task, experiment: Experiment, title: str) -> _Measured:
    """The experiment with its own seed; Optuna may end it after any round."""
    settings = experiment.sweep
    watcher = Watcher(trial, settings.metrics[0]) if len(settings.metrics) == 1 else Watcher()
    outcome = runs.run(experiment, task.label, watcher.beside(nobody), task.run_id, "trial", task.warmups, title)
    values = [score(watcher.history, metric) for metric in settings.metrics]
    missed = violations(watcher.history, settings.constraints)
    return _Measured(outcome.run_id, watcher.rounds, values, missed, outcome.stopped)


def _several_seeds(trial: Trial, task: _Task, experiment: Experiment, title: str) -> _Measured:
    """The experiment with one seed after the other under a run of the trial; Optuna may end it after any seed."""
    settings, store = experiment.sweep, tracking.client()
    run_id = tracking.create_run(store, experiment, title, "trial", task.run_id, **{"fl.experiment": task.label})
    found: list[_Measured] = []
    stopped = None
    for position, seed in enumerate(settings.seeds):
        watcher = Watcher()
        own = runs.one_seed(experiment, seed)
        outcome = runs.run(own, task.label, watcher.beside(nobody), run_id, "seed", task.warmups, f"seed {seed}")
        values = [score(watcher.history, metric) for metric in settings.metrics]
        missed = violations(watcher.history, settings.constraints)
        found.append(_Measured(outcome.run_id, watcher.rounds, values, missed, outcome.stopped))
        if stopped := outcome.stopped:
            break
        if len(settings.metrics) == 1:
            trial.report(values[0], position)
            if position + 1 < len(settings.seeds) and trial.should_prune():
                stopped = f"pruned after seed {seed}"
                break
    spread = {metric: interval([one.values[place] for one in found]) for place, metric in enumerate(settings.metrics)}
    tracking.log_summary(store, run_id, spread)
    tracking.end_run(store, run_id, "FINISHED", stopped)
    missed = {name: sum(one.missed[name] for one in found) / len(found) for name in settings.constraints}
    rounds = sum(one.rounds for one in found)
    return _Measured(run_id, rounds, [one.mean for one in spread.values()], missed, stopped)


def _winner(task: _Task, study: optuna.Study) -> FrozenTrial:
    """The best trial that came to its end."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = {trial.user_attrs.get("error", "unknown") for trial in study.get_trials(deepcopy=False)}
        tracking.end_run(tracking.client(), task.run_id, "FAILED", "; ".join(sorted(reasons)))
        raise ConfigError(f"no trial came to its end: {'; '.join(sorted(reasons))}")
    return min(complete, key=lambda trial: rank(study, trial))


def _conclude(task: _Task, study: optuna.Study, watch: runs.Watch) -> SweepOutcome:
    """Confirm the winner on unseen seeds, beside what is configured, and register its model."""
    experiment = load(task.tree)
    settings = experiment.sweep
    store = tracking.client()
    measured = study.get_trials(deepcopy=False, states=MEASURED)
    winner = _winner(task, study)
    searched = dict(zip(settings.metrics, winner.values, strict=True)) if _feasible(winner) else None
    configured = {} if experiment.attack else {"attack": next(iter(winner.user_attrs["changes"].values()))}
    # The model of an attack that a search made weak is nothing to look for in the registry.
    register = "always" if settings.directions[0] == "maximize" else "never"
    confirmed, registered = _confirm(task, experiment, winner.user_attrs["changes"], watch, "winner", register)
    default, _ = _confirm(
        task, experiment, configured, watch, f"configured {searched_slot(winner.user_attrs['changes'])}", "never"
    )
    first = settings.metrics[0]
    better = 1 if settings.directions[0] == "maximize" else -1
    gain = interval([better * (a - b) for a, b in zip(confirmed[first], default[first], strict=True)])
    rounds = sum(trial.user_attrs.get("rounds", 0) for trial in measured)
    outcome = SweepOutcome(
        run_id=task.run_id,
        study=study.study_name,
        trials=_table(study, measured),
        searched=searched,
        winner=winner.user_attrs["changes"],
        confirmed={metric: interval(values) for metric, values in confirmed.items()},
        default={metric: interval(values) for metric, values in default.items()},
        gain=gain,
        registered_model=registered,
        rounds_saved=1 - rounds / (experiment.rounds * max(1, len(settings.seeds)) * len(measured)),
    )
    store.log_text(task.run_id, json.dumps(asdict(outcome) | {"verdict": outcome.verdict}, indent=1), "search.json")
    for metric in settings.metrics:
        figures = {"confirmed": outcome.confirmed[metric].mean, "configured": outcome.default[metric].mean}
        figures |= {"searched": searched[metric]} if searched else {}
        for name, value in figures.items():
            store.log_metric(task.run_id, f"sweep/{name}/{metric}", value)
    store.log_metric(task.run_id, "sweep/rounds_saved", outcome.rounds_saved)
    for name, figure in pictures(study, settings.metrics):
        tracking.log_picture(store, task.run_id, figure, f"search_{name}.png")
    return outcome


def _table(study: optuna.Study, measured: list[FrozenTrial]) -> list[dict[str, Any]]:
    front = {trial.number for trial in study.best_trials} if len(study.directions) > 1 else set()
    return [
        {
            "number": trial.number,
            "values": trial.values,
            "state": trial.state.name.lower(),
            "feasible": _feasible(trial),
            "front": trial.number in front,
            "changes": trial.user_attrs.get("changes", {}),
            "run_id": trial.user_attrs.get("run_id"),
        }
        for trial in sorted(measured, key=lambda trial: (trial.state != TrialState.COMPLETE, rank(study, trial)))
    ]


def _confirm(
    task: _Task, base: Experiment, drawn: Mapping[str, Any], watch: runs.Watch, who: str, register: str
) -> tuple[dict[str, list[float]], str | None]:
    """Figures on the unseen seeds; the first run's model is registered."""
    values: dict[str, list[float]] = {metric: [] for metric in base.sweep.metrics}
    registered = None
    for position, seed in enumerate(base.sweep.confirm_seeds):
        first = position == 0 and register != "never"  # its clean twin goes into the registry beside it
        own = {"seed": seed, "tracking.register": register if first else "never", "evaluation.twin": first}
        watcher = Watcher()
        outcome = runs.run(
            base.override({**drawn, **own}),
            task.label,
            watcher.beside(watch),
            task.run_id,
            "confirmation",
            task.warmups,
            f"{who}, unseen seed {seed}",
        )
        for metric, figures in values.items():
            figures.append(score(watcher.history, metric))
        registered = registered or outcome.registered_model
    return values, registered


def _feasible(trial: FrozenTrial) -> bool:
    return all(missed <= 0 for missed in trial.constraints.values())


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _digest(experiment: Experiment) -> str:
    """Identifies a study: everything but how many trials it gets and by how many workers."""
    settings = replace(experiment.sweep, trials=1, jobs=1)
    return experiment.model_copy(update={"sweep": settings}).digest()[:8]


def _killed(trials: list[FrozenTrial]) -> int:
    return sum(trial.state == TrialState.FAIL and "error" not in trial.user_attrs for trial in trials)


def _bury(study: optuna.Study) -> None:
    """End what a killed process left RUNNING; only called when no other process works on the study."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    tracking.end_children(study.user_attrs["run_id"], "KILLED", "its process was killed")
