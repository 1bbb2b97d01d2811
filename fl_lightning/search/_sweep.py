"""Everything Optuna: the search for the strongest attack, or for the best defense.

A study lives in `mlruns/optuna.db`, or where `FL_LIGHTNING_STUDIES` says, and is named after its configuration, so that the same
command continues it. The parent MLflow run is the study, every trial is a child run. The winner is run again on seeds that the
search never saw.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fl_lightning import runs, tracking
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.metrics import Interval, bounds, interval
from fl_lightning.parallel import interruptible
from fl_lightning.registry import refuse_unreachable
from fl_lightning.search import _storage as studies
from fl_lightning.search._account import tell
from fl_lightning.search._cmaes import check_sampler
from fl_lightning.search._first_trials import check_first, enqueue_first, given, rank
from fl_lightning.search._pictures import pictures
from fl_lightning.search._reported import check_reported
from fl_lightning.search._space import search_space
from fl_lightning.search._storage import studies_url
from fl_lightning.search._study import MEASURED, Task, end_killed, feasible, quiet, study_digest
from fl_lightning.search._trials import Watcher, score
from fl_lightning.search._workers import Progress, run_trials
from fl_lightning.tracking import find

log = logging.getLogger("fl_lightning")


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
    with _searched(experiment, label, progress, enqueue) as (task, study):
        return _conclude(task, study, watch)


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
        run_id = tracking.create_run(
            store, experiment, f"search: {tracking.registered_name(experiment)}", "study", **{"fl.experiment": label}
        )
        if begun:
            log.warning("the run of study %s is not in %s any more: it has a new one", name, tracking.tracking_uri())
        else:
            enqueue_first(study, task.storage, experiment, space)
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
    configured = {} if experiment.attack else {"attack": next(iter(winner.user_attrs["changes"].values()))}
    # The model of an attack that a search made weak is nothing to look for in the registry.
    keep = experiment.tracking.models and experiment.tracking.register != "never"
    register = "always" if keep and settings.directions[0] == "maximize" else "never"
    confirmed, registered = _confirm(task, experiment, winner.user_attrs["changes"], watch, "winner", register)
    default, _ = _confirm(task, experiment, configured, watch, "default", "never")
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
        confirmed={metric: interval(values, bounds(metric)) for metric, values in confirmed.items()},
        default={metric: interval(values, bounds(metric)) for metric, values in default.items()},
        gain=gain,
        registered_model=registered,
        rounds_saved=1 - rounds / (experiment.planned_rounds * max(1, len(settings.seeds)) * len(measured)),
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
    for position, seed in enumerate(base.sweep.confirm_seeds):
        first = position == 0 and register != "never"  # its clean twin goes into the registry beside it
        own = {"seed": seed, "tracking.register": register if first else "never", "evaluation.twin": first}
        watcher = Watcher()
        outcome = runs.run(
            base.override({**drawn, **own}),
            task.label,
            watcher.beside(watch),
            runs.Under(task.run_id, "confirmation", f"seed {seed} {who}"),
            task.warmups,
        )
        for metric, figures in values.items():
            figures.append(score(watcher.history, metric))
        shown = " ".join(f"{figures[-1]:.4f}" for figures in values.values())
        tracking.rename(tracking.client(), outcome.run_id, f"seed {seed} {who} {shown}")
        registered = registered or outcome.registered_model
    return values, registered
