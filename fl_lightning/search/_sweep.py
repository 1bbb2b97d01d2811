"""Everything Optuna: the search for the strongest attack, or for the best defense.

A study lives in `mlruns/optuna.db`, or where `FL_LIGHTNING_STUDIES` says, and is named after its configuration, so that the same
command continues it. The parent MLflow run is the study, every trial is a child run. The winner is run again on seeds that the
search never saw.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import uuid4

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from fl_lightning import runs, tracking
from fl_lightning.config import Experiment, dump
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.metrics import Interval, bounds, interval
from fl_lightning.parallel import interruptible
from fl_lightning.registry import refuse_unreachable, to_plain
from fl_lightning.search import _storage as studies
from fl_lightning.search._account import tell
from fl_lightning.search._cmaes import check_sampler
from fl_lightning.search._ended import MEASURED, feasible
from fl_lightning.search._first_trials import check_first, enqueue_first, given, rank
from fl_lightning.search._fitting import all_that_fit
from fl_lightning.search._pictures import pictures
from fl_lightning.search._reported import check_reported
from fl_lightning.search._runners_up import RunnerUp, runners_up, untried
from fl_lightning.search._space import search_space, threat
from fl_lightning.search._storage import studies_url
from fl_lightning.search._study import Task, end_killed, quiet, study_digest
from fl_lightning.search._trials import Watcher, score
from fl_lightning.search._workers import Progress, run_trials
from fl_lightning.tracking import find

log = logging.getLogger("fl_lightning")

MARK = "mark"
"""Attribute of a study: what its run in MLflow is found by."""


@dataclass(frozen=True)
class SweepOutcome(runs.Shown):
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
        runners_up: the other choices of what is searched first, such as of attacks, the next best first.
        untried: choices that no trial was begun with.
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
    runners_up: list[RunnerUp] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        """What was searched."""
        return searched_slot(self.winner)

    @property
    def verdict(self) -> str:
        """Whether the search was worth it, in words; decided by the 95 % interval of the paired difference."""
        if self.gain.low > 0:
            return f"the winner beats the configured {self.what}"
        if self.gain.high < 0 or self.gain.mean == self.gain.half == 0:
            return f"the winner does not beat the configured {self.what}"
        return f"the winner cannot be told from the configured {self.what} on these seeds"


@interruptible()
def sweep(
    experiment: Experiment,
    label: str = "experiment",
    watch: runs.Watch = runs.no_observers,
    progress: Progress = lambda study, trials: None,
    enqueue: Sequence[Mapping[str, Any]] = (),
) -> SweepOutcome:
    """Search, confirm, register.

    Args:
        experiment: its `sweep` settings say what is searched.
        label: the name that the experiment was started by.
        watch: makes observers for the confirmation runs.
        progress: called about once a second with the study.
        enqueue: trials of the user's own, by dotted path; they are tried before any other that has not begun.

    Raises:
        ConfigError: bad input, before any trial.
    """
    check_confirmation(experiment)
    with _searched(experiment, label, progress, enqueue) as (task, study):
        return _conclude(task, study, watch)


def check_confirmation(experiment: Experiment) -> None:
    """Refuse to confirm a winner on the seed that it was found on.

    Raises:
        ConfigError: the seed of the search is among those of the confirmation.
    """
    search = experiment.sweep
    if not search.seeds and experiment.seed in search.confirm_seeds:
        raise ConfigError(
            f"the search must not have seen these seeds, and it runs with seed {experiment.seed}; "
            f"got {list(search.confirm_seeds)}",
            "sweep.confirm_seeds",
        )


@interruptible()
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
def _searched(
    experiment: Experiment, label: str, progress: Progress, enqueue: Sequence[Mapping[str, Any]] = ()
) -> Iterator[tuple[Task, optuna.Study]]:
    """The study with all its trials; its run is ended afterwards."""
    quiet()
    if experiment.sweep.against:
        attack = find(experiment.sweep.against).experiment.attack
        experiment = experiment.override({"attack": attack and attack.to_dict()})
    if experiment.sweep.worst and not experiment.evaluation.worst:
        experiment = experiment.override({"attack": None, "evaluation.worst": to_plain(experiment.sweep.worst)})
    experiment = all_that_fit(experiment)
    if experiment.sweep.jobs != 1:
        refuse_unreachable(experiment)
    check_sampler(experiment.sweep.sampler)
    space = search_space(experiment)
    check_first(experiment, space)  # bad input shows before a study exists
    own = [given(experiment, space, drawn) for drawn in enqueue]
    Federation(experiment)
    check_reported(experiment, space)
    store = tracking.client()
    name = f"{tracking.registered_name(experiment)}-{study_digest(experiment)}"
    task = Task(name, studies_url(), experiment, space, label)
    study = task.open()

    def prepare() -> None:
        for params in own:
            study.enqueue_trial(params, skip_if_exists=True)
        if tracking.is_there(store, study.user_attrs.get("run_id", "")):
            end_killed(study)
            return
        begun = "run_id" in study.user_attrs
        if begun:
            log.warning("the run of study %s is not in %s any more: it has a new one", name, tracking.tracking_uri())
        else:
            enqueue_first(study, task.storage, experiment, space)
        if MARK not in study.user_attrs:  # so that a run whose maker was killed is found again
            study.set_user_attr(MARK, uuid4().hex)
        title, mark = f"search: {tracking.registered_name(experiment)}", ("fl.study", study.user_attrs[MARK])
        run_id = tracking.find_or_create(store, experiment, title, "study", mark, **{"fl.experiment": label})
        study.set_user_attr("run_id", run_id)
        end_killed(study)

    with studies.searching(task.storage, name, prepare):
        run_id = study.user_attrs["run_id"]
        tracking.reopen(store, run_id)
        task = replace(task, run_id=run_id)
        with tracking.ended_as_it_is(store, run_id):
            run_trials(task, study, progress)
    with tracking.ended_as_it_is(store, run_id):
        yield task, study
        tracking.end_run(store, run_id, "FINISHED")
    shutil.rmtree(task.warmups, ignore_errors=True)


def searched_slot(drawn: Mapping[str, Any]) -> str:
    """What a search varies: the `attack`, the `defense` against it, or other `settings`."""
    slots = {path.split(".")[0] for path in drawn}
    if slots == {"attack"}:
        return "attack"
    return "defense" if slots <= {"defenses", "aggregator", "client", "server"} else "settings"


def _winner(task: Task, study: optuna.Study) -> FrozenTrial:
    """The best trial that came to its end."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = {trial.user_attrs.get("error", "unknown") for trial in study.get_trials(deepcopy=False)}
        raise ConfigError(f"no trial came to its end: {'; '.join(sorted(reasons))}")
    return min(complete, key=lambda trial: rank(study, trial))


def _conclude(task: Task, study: optuna.Study, watch: runs.Watch) -> SweepOutcome:
    """Confirm the winner on unseen seeds, beside what is configured, and register its model."""
    experiment, settings = task.experiment, task.experiment.sweep
    store = tracking.client()
    measured = study.get_trials(deepcopy=False, states=MEASURED)
    winner = _winner(task, study)
    searched = dict(zip(settings.metrics, winner.values, strict=True)) if feasible(winner) else None
    drawn = winner.user_attrs["changes"]
    configured = {} if experiment.attack or "attack" not in drawn else {"attack": drawn["attack"]}
    configured |= threat(experiment)
    # The model of an attack that a search made weak is nothing to look for in the registry.
    keep = experiment.tracking.models and experiment.tracking.register != "never"
    register = "always" if keep and settings.directions[0] == "maximize" else "never"
    confirmed, registered = _confirm(task, experiment, winner.user_attrs["changes"], watch, "winner", register)
    default, _ = _confirm(task, experiment, configured, watch, "default", "never")
    first = settings.metrics[0]
    better = 1 if settings.directions[0] == "maximize" else -1
    gain = interval([better * (a - b) for a, b in zip(confirmed[first], default[first], strict=True)])

    def confirm(changes: Mapping[str, Any], who: str) -> Mapping[str, Sequence[float]]:
        return _confirm(task, experiment, changes, watch, who, "never")[0]

    others = runners_up(study, task.space, settings, winner, confirmed[first], confirm)
    rounds = sum(trial.user_attrs.get("rounds", 0) for trial in measured)
    outcome = SweepOutcome(
        run_id=task.run_id,
        study=study.study_name,
        trials=_table(study, measured),
        searched=searched,
        winner=winner.user_attrs["changes"],
        confirmed={metric: interval(values, bounds(metric)) for metric, values in confirmed.items()},
        default={metric: interval(values, bounds(metric)) for metric, values in default.items()},
        gain=gain,
        registered_model=registered,
        rounds_saved=1 - rounds / (experiment.planned_rounds * max(1, len(settings.seeds)) * len(measured)),
        runners_up=others,
        untried=untried(study, task.space),
    )
    store.log_text(task.run_id, json.dumps(asdict(outcome) | {"verdict": outcome.verdict}, indent=1), "search.json")
    store.log_text(task.run_id, dump(experiment.override(drawn | {"sweep": {}})), "winner.yaml")
    figures = {"sweep/rounds_saved": outcome.rounds_saved}
    for metric in settings.metrics:
        figures |= {
            f"sweep/confirmed/{metric}": outcome.confirmed[metric].mean,
            f"sweep/configured/{metric}": outcome.default[metric].mean,
        } | ({f"sweep/searched/{metric}": searched[metric]} if searched else {})
        if metric in tracking.HEADLINES:
            figures[tracking.HEADLINES[metric]] = outcome.confirmed[metric].mean
    tracking.log_figures(store, task.run_id, figures)
    for name, figure in pictures(study, settings.metrics):
        tracking.log_picture(store, task.run_id, figure, f"search_{name}.png")
    tell(store, study, experiment, outcome)
    return outcome


def _table(study: optuna.Study, measured: list[FrozenTrial]) -> list[dict[str, Any]]:
    front = {trial.number for trial in study.best_trials} if len(study.directions) > 1 else set()
    return [
        {
            "number": trial.number,
            "values": trial.values,
            "state": trial.state.name.lower(),
            "feasible": feasible(trial),
            "front": trial.number in front,
            "changes": trial.user_attrs.get("changes", {}),
            "run_id": trial.user_attrs.get("run_id"),
        }
        for trial in sorted(measured, key=lambda trial: (trial.state != TrialState.COMPLETE, rank(study, trial)))
    ]


def _confirm(
    task: Task, base: Experiment, drawn: Mapping[str, Any], watch: runs.Watch, who: str, register: str
) -> tuple[dict[str, list[float]], str | None]:
    """Figures on the unseen seeds; the first run's model is registered."""
    values: dict[str, list[float]] = {metric: [] for metric in base.sweep.metrics}
    registered = None
    store = tracking.client()
    query = " AND tags.`fl.kind` = 'confirmation' AND attributes.status = 'FINISHED'"
    known = {_told_by(run): run for run in tracking.nested(store, task.run_id, query)}
    for position, seed in enumerate(base.sweep.confirm_seeds):
        first = position == 0 and register != "never"  # its clean twin goes into the registry beside it
        own = {"seed": seed, "tracking.register": register if first else "never", "evaluation.twin": first}
        experiment, title = base.override({**drawn, **own}), f"seed {seed} {who}"
        if done := known.get((title, experiment.digest())):
            outcome = runs.resume(done.info.run_id)
            history: Sequence[Mapping[str, float]] = _figures(store, outcome.run_id, values)
        else:
            watcher = Watcher()
            under = runs.Under(task.run_id, "confirmation", title)
            outcome = runs.run(experiment, task.label, watcher.beside(watch), under, task.warmups)
            history = watcher.history
        for metric, figures in values.items():
            figures.append(score(history, metric))
        shown = " ".join(f"{figures[-1]:.4f}" for figures in values.values())
        tracking.rename(store, outcome.run_id, f"{title} {shown}")
        registered = registered or outcome.registered_model
    return values, registered


def _told_by(run: Run) -> tuple[str, str]:
    """What a confirmation is known by: seed, who was confirmed, and its configuration."""
    return " ".join(str(run.info.run_name).split(" ")[:3]), str(run.data.tags.get("fl.config"))


def _figures(store: MlflowClient, run_id: str, metrics: Iterable[str]) -> list[dict[str, float]]:
    """Some metrics of a finished run, round by round."""
    return [
        {metric: value} for metric in metrics for _, value in sorted(tracking.history(store, run_id, metric).items())
    ]
