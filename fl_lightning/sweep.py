"""Everything Optuna: the search for the strongest attack.

A study lives in `mlruns/optuna.db` and is named after its configuration, so that the same command continues it. The parent
MLflow run is the study, every trial is a child run. The winner is run again on seeds that the search never saw.
"""

import fcntl
import json
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import optuna  # noqa: TID251
import torch
from optuna.trial import FrozenTrial, Trial, TrialState  # noqa: TID251

from fl_lightning import runs, tracking
from fl_lightning.attacks import Attack, Choice, Tunable
from fl_lightning.config import Experiment, load, parse_bound
from fl_lightning.federation import Federation, Observer, RoundReport
from fl_lightning.metrics import Interval, interval
from fl_lightning.paths import runs_folder
from fl_lightning.registry import ConfigError, suggest

__all__ = ["SweepOutcome", "search_space", "sweep"]

HEARTBEAT_SECONDS = 20
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

Space = dict[str, Tunable | Choice]


@dataclass(frozen=True)
class SweepOutcome:
    """What a search came to.

    Attributes:
        run_id: MLflow run of the study.
        study: name of the study in Optuna.
        trials: finished trials, best first: number, value, parameters, feasible, state.
        searched: the best feasible value that the search saw (optimistic), or None.
        winner: the winner's parameters.
        confirmed: the winner's value on unseen seeds.
        default: the untuned attack's value on the same seeds.
        registered_model: `name/version` of the winner's poisoned model, or None.
        rounds_saved: share of rounds that pruning did not run.
    """

    run_id: str
    study: str
    trials: list[dict[str, Any]]
    searched: float | None
    winner: dict[str, Any]
    confirmed: Interval | None
    default: Interval | None
    registered_model: str | None
    rounds_saved: float


def search_space(experiment: Experiment) -> Space:
    """Dotted path -> range: `sweep.space` where given, else every tunable field of the configured attack.

    Raises:
        ConfigError: nothing to search, or a range that is none.
    """
    if experiment.sweep.space:
        space: Space = {}
        for path, given in experiment.sweep.space.items():
            try:
                space[path] = Choice(tuple(given)) if isinstance(given, list) else Tunable(**given)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"expected {{low, high, log}} or a list of choices: {error}", f"sweep.space.{path}"
                ) from None
        return space
    if experiment.attack is None:
        raise ConfigError("a sweep searches the strongest attack; set attack or sweep.space", "attack")
    found = tunables(type(experiment.attack))
    if not found:
        raise ConfigError(f"{experiment.attack.name} has no tunable field; set sweep.space", "attack")
    return {f"attack.{name}": span for name, span in found.items()}


def tunables(attack: type[Attack]) -> dict[str, Tunable | Choice]:
    """The annotated search ranges of an attack's fields."""
    hints = get_type_hints(attack, include_extras=True)
    found = {}
    for field in fields(attack):
        for mark in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(mark, Tunable | Choice):
                found[field.name] = mark
    return found


def suggest_value(trial: Trial, path: str, span: Tunable | Choice) -> Any:
    """A value of one parameter."""
    if isinstance(span, Choice):
        return trial.suggest_categorical(path, list(span.values))
    if span.integer:
        return trial.suggest_int(path, int(span.low), int(span.high), log=span.log)
    return trial.suggest_float(path, span.low, span.high, log=span.log)


def score(history: list[dict[str, float]], metric: str) -> float:
    """Mean of a metric over the last third of the rounds that report it: a single round is noise.

    Raises:
        ConfigError: no round reports it.
    """
    values = [figures[metric] for figures in history if metric in figures]
    if not values:
        reported = sorted({name for figures in history for name in figures if not name.startswith("time/")})
        raise ConfigError(f"no round reports {metric!r}; {suggest(metric, reported)}", "sweep.metric")
    last = values[-max(1, len(values) // 3) :]
    return sum(last) / len(last)


def violations(history: list[dict[str, float]], constraints: Mapping[str, str]) -> list[float]:
    """By how much each constraint is missed; at most 0 where it holds."""
    missed = []
    for metric, bound in constraints.items():
        sign, limit = parse_bound(metric, bound)
        missed.append(sign * (limit - score(history, metric)))
    return missed


class _Pruning:
    """An observer that reports the metric to Optuna and stops a hopeless trial."""

    def __init__(self, trial: Trial, metric: str, enabled: bool):
        self.trial, self.metric, self.enabled = trial, metric, enabled
        self.history: list[dict[str, float]] = []

    def start(self, federation: Federation) -> None:
        pass

    def round(self, federation: Federation, report: RoundReport) -> None:
        self.history = federation.state.history
        if self.metric not in report.metrics:
            return
        self.trial.report(report.metrics[self.metric], report.round)
        last = report.round + 1 == federation.experiment.rounds
        if self.enabled and not last and self.trial.should_prune():
            federation.state.stopped = f"pruned after round {report.round}"


@dataclass(frozen=True)
class _Study:
    """What a worker process needs to know."""

    name: str
    storage: str
    tree: dict[str, Any]
    label: str
    run_id: str

    def open(self) -> optuna.Study:
        experiment = load(self.tree)
        settings = experiment.sweep

        def constraints(trial: FrozenTrial) -> list[float]:
            return list(trial.user_attrs.get("violations", [0.0] * len(settings.constraints)))

        bounded = constraints if settings.constraints else None
        # Workers must not repeat each other's random starts.
        seed = experiment.seed + os.getpid() % 1000 if settings.jobs > 1 else experiment.seed
        samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, constraints_func=bounded),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed, constraints_func=bounded),
            "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        }
        warmup = max(1, experiment.rounds // 3)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=warmup)
        storage = optuna.storages.RDBStorage(
            self.storage, engine_kwargs={"connect_args": {"timeout": 60}}, heartbeat_interval=HEARTBEAT_SECONDS
        )
        return optuna.create_study(
            storage=storage,
            study_name=self.name,
            sampler=samplers[settings.sampler](),
            pruner=pruner if settings.prune else optuna.pruners.NopPruner(),
            direction=settings.direction,
            load_if_exists=True,
        )


def sweep(
    experiment: Experiment,
    label: str = "experiment",
    watch: runs.Watch = lambda experiment: (),
    progress: Callable[[optuna.Study, int], None] = lambda study, trials: None,
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
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    space = search_space(experiment)
    Federation(experiment)  # bad input shows before a study exists
    store = tracking.client()
    name = f"{tracking.registered_name(experiment)}-{_digest(experiment)}"
    task = _Study(name, f"sqlite:///{runs_folder() / 'optuna.db'}", experiment.to_dict(), label, "")
    study = task.open()

    def prepare() -> None:
        if "run_id" in study.user_attrs:
            _bury(study)
            return
        run_id = tracking.create_run(store, experiment, f"search: {name}", "study", **{"fl.experiment": label})
        study.enqueue_trial(_defaults(experiment, space))
        study.set_user_attr("run_id", run_id)

    with _shared(runs_folder() / f"{name}.lock", prepare):
        run_id = study.user_attrs["run_id"]
        store.update_run(run_id, status="RUNNING")
        task = replace(task, run_id=run_id)
        _search(task, study, progress)
    outcome = _conclude(task, study, label, watch)
    tracking.end_run(store, run_id, "FINISHED")
    return outcome


def _search(task: _Study, study: optuna.Study, progress: Callable[[optuna.Study, int], None]) -> None:
    settings = load(task.tree).sweep
    missing = settings.trials - len(study.get_trials(deepcopy=False, states=DONE))
    jobs = min(settings.jobs, max(0, missing))
    if jobs == 1:
        _work(task, lambda: progress(study, settings.trials))
        return
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work_alone, args=(task, jobs), daemon=True) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            progress(study, settings.trials)
            time.sleep(1)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    progress(study, settings.trials)


def _work_alone(task: _Study, jobs: int) -> None:
    """A worker process: its share of the cores, no output of its own."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    _work(task, lambda: None)


def _work(task: _Study, progress: Callable[[], None]) -> None:
    """Trials until enough are done or under way."""
    study = task.open()
    experiment = load(task.tree)
    store = tracking.client()
    while True:
        progress()
        trials = study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in trials) >= experiment.sweep.trials + _killed(trials):
            return
        study.optimize(lambda trial: _trial(trial, task, experiment), n_trials=1, catch=(Exception,))
        last = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if last and last[-1].value is not None:
            store.log_metric(task.run_id, "sweep/value", last[-1].value, step=last[-1].number)
            store.log_metric(task.run_id, "sweep/best", _best(study, last).value or 0.0, step=last[-1].number)


def _trial(trial: Trial, task: _Study, base: Experiment) -> float:
    """One trial: a tracked child run of the study."""
    settings = base.sweep
    values = {path: suggest_value(trial, path, span) for path, span in search_space(base).items()}
    experiment = base.override(values | {"tracking.register": "never", "evaluation.twin": False})
    pruning = _Pruning(trial, settings.metric, settings.prune)
    try:
        outcome = runs.run(experiment, task.label, lambda _: [pruning], parent=task.run_id, kind="trial")
    except Exception as error:
        trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:500])
        raise
    trial.set_user_attr("run_id", outcome.run_id)
    trial.set_user_attr("rounds", outcome.rounds)
    trial.set_user_attr("violations", violations(pruning.history, settings.constraints))
    value = score(pruning.history, settings.metric)
    if outcome.stopped and outcome.stopped.startswith("pruned"):
        raise optuna.TrialPruned(outcome.stopped)
    if outcome.stopped:
        trial.set_user_attr("error", outcome.stopped)
        raise optuna.TrialPruned(outcome.stopped)
    return value


def _conclude(task: _Study, study: optuna.Study, label: str, watch: runs.Watch) -> SweepOutcome:
    """Confirm the winner on unseen seeds, beside the untuned attack, and register its model."""
    experiment = load(task.tree)
    store = tracking.client()
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [trial for trial in done if trial.state == TrialState.COMPLETE]
    if not complete:
        reasons = {trial.user_attrs.get("error", "unknown") for trial in study.get_trials(deepcopy=False)}
        tracking.end_run(store, task.run_id, "FAILED", "; ".join(sorted(reasons)))
        raise ConfigError(f"no trial came to its end: {'; '.join(sorted(reasons))}")
    winner = _best(study, complete)
    default = _defaults(experiment, search_space(experiment))
    confirmed, registered = _confirm(task, experiment, winner.params, label, watch, "always")
    untuned = confirmed if winner.params == default else _confirm(task, experiment, default, label, watch, "never")[0]
    best_first = sorted(done, key=lambda trial: _rank(study, trial))
    rounds = sum(trial.user_attrs.get("rounds", 0) for trial in done)
    table = [
        {
            "number": trial.number,
            "value": trial.value,
            "state": trial.state.name.lower(),
            "feasible": _feasible(trial),
            "params": trial.params,
            "run_id": trial.user_attrs.get("run_id"),
        }
        for trial in best_first
    ]
    outcome = SweepOutcome(
        task.run_id,
        study.study_name,
        table,
        winner.value if _feasible(winner) else None,
        dict(winner.params),
        confirmed,
        untuned,
        registered,
        1 - rounds / (experiment.rounds * len(done)),
    )
    store.log_text(task.run_id, json.dumps(table, indent=1), "trials.json")
    for figure, value in (
        ("sweep/searched", winner.value),
        ("sweep/confirmed", confirmed.mean),
        ("sweep/default", untuned.mean),
    ):
        store.log_metric(task.run_id, figure, value or 0.0)
    store.log_metric(task.run_id, "sweep/rounds_saved", outcome.rounds_saved)
    tracking.log_study_pictures(store, task.run_id, study)
    return outcome


def _confirm(
    task: _Study, base: Experiment, params: Mapping[str, Any], label: str, watch: runs.Watch, register: str
) -> tuple[Interval, str | None]:
    """Runs on the unseen seeds; the first one's model is registered."""
    values, registered = [], None
    for position, seed in enumerate(base.sweep.confirm_seeds):
        changes = {"seed": seed, "tracking.register": register if position == 0 else "never"}
        experiment = base.override({**params, **changes})
        history = _History()
        outcome = runs.run(experiment, label, _beside(history, watch), parent=task.run_id, kind="confirmation")
        values.append(score(history.rounds, base.sweep.metric))
        registered = registered or outcome.registered_model
    return interval(values), registered


def _beside(observer: Observer, watch: runs.Watch) -> runs.Watch:
    return lambda experiment: [observer, *watch(experiment)]


class _History:
    """An observer that keeps the figures of all rounds."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []

    def start(self, federation: Federation) -> None:
        pass

    def round(self, federation: Federation, report: RoundReport) -> None:
        self.rounds = federation.state.history


def _best(study: optuna.Study, trials: list[FrozenTrial]) -> FrozenTrial:
    """The best feasible trial, else the one that misses its constraints least."""
    scored = [trial for trial in trials if trial.value is not None]
    feasible = [trial for trial in scored if _feasible(trial)]
    if feasible:
        return max(feasible, key=lambda trial: _sign(study) * (trial.value or 0.0))
    return min(scored, key=lambda trial: sum(max(0.0, v) for v in trial.user_attrs["violations"]))


def _rank(study: optuna.Study, trial: FrozenTrial) -> tuple[bool, float]:
    """Sorts the best trial first, infeasible and valueless ones last."""
    value = math.inf if trial.value is None else -_sign(study) * trial.value
    return not _feasible(trial), value


def _feasible(trial: FrozenTrial) -> bool:
    return all(missed <= 0 for missed in trial.user_attrs.get("violations", []))


def _sign(study: optuna.Study) -> int:
    return 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1


def _defaults(experiment: Experiment, space: Space) -> dict[str, Any]:
    """The configured values of the searched paths, which the search tries first."""
    flat = tracking.flatten(experiment.to_dict())
    return {path: flat[path] for path in space if flat.get(path) is not None}


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


@contextmanager
def _shared(path: Path, when_alone: Callable[[], None]) -> Iterator[None]:
    """Hold a study open together with other processes; the first one may clean up before the others come in."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            when_alone()
        except BlockingIOError:
            pass
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
