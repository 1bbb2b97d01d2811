"""What one trial of a search draws, watches and reports to Optuna."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.trial import Trial

from fl_lightning import runs, tracking
from fl_lightning.attacks import Choice
from fl_lightning.config import Experiment, parse_bound
from fl_lightning.errors import ConfigError, suggest
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.metrics import bounds, interval
from fl_lightning.runs import attack_start
from fl_lightning.search._first_trials import ASKED
from fl_lightning.search._space import KEPT, Ask, Span, changes, threat
from fl_lightning.search._study import Task

FAR = 1e9
"""By how much a constraint counts as missed whose metric is no number."""


def score(history: Sequence[Mapping[str, float]], metric: str) -> float:
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


def violations(history: Sequence[Mapping[str, float]], constraints: Mapping[str, str]) -> dict[str, float]:
    """By how much each constraint is missed; at most 0 where it holds."""
    missed = {}
    for metric, bound in constraints.items():
        sign, limit = parse_bound(metric, bound)
        by = sign * (limit - score(history, metric))
        missed[metric] = by if math.isfinite(by) else FAR
    return missed


class Watcher:
    """An observer that keeps the figures, and reports the score so far to Optuna, which may end a hopeless trial."""

    def __init__(self, trial: Trial | None = None, metric: str = ""):
        self.trial, self.metric = trial, metric
        self.history: list[dict[str, float]] = []
        self.rounds = 0
        self.clean = 0
        self.pruned = False

    def start(self, federation: Federation) -> None:
        """Find the first attacked round: what comes before it tells nothing."""
        self.clean = attack_start(federation.experiment)

    def round(self, federation: Federation, report: RoundReport) -> None:
        """Report the score of the attacked rounds so far; stop the federation where Optuna gives the trial up."""
        self.history = federation.state.history
        self.rounds += 1
        if self.trial is None or self.metric not in report.metrics:
            return
        if report.round < self.clean:
            return
        self.trial.report(score(self.history[self.clean :], self.metric), report.round - self.clean)
        last = report.round + 1 == federation.experiment.planned_rounds
        if not last and self.trial.should_prune():
            federation.state.give_up(f"pruned after round {report.round}")
            self.pruned = True

    def beside(self, watch: runs.Watch = runs.no_observers) -> runs.Watch:
        """This observer and those that `watch` makes."""
        return lambda experiment: [self, *watch(experiment)]


def ask(trial: Trial) -> Ask:
    """Draws from Optuna; a trial of what is configured leaves what lies outside of the ranges as it is."""
    asked = trial.user_attrs.get(ASKED)

    def draw(name: str, span: Span) -> Any:
        if asked is not None and name not in asked:
            return KEPT
        if isinstance(span, Choice):
            return trial.suggest_categorical(name, list(span.values))
        if span.integer:
            return trial.suggest_int(name, int(span.low), int(span.high), log=span.log)
        return trial.suggest_float(name, span.low, span.high, log=span.log)

    return draw


class TrialFailedError(RuntimeError):
    """A trial that came to no figure; the reason is among its attributes, and the search goes on."""


def run_trial(trial: Trial, task: Task) -> float | Sequence[float]:
    """One trial, whatever becomes of it.

    Raises:
        TrialFailedError: it came to no figure.
        TrialPruned: it was given up.
        ConnectionError: the store went away; the trial counts as killed, and is run again.
    """
    try:
        return _run_trial(trial, task)
    except (optuna.TrialPruned, ConnectionError):
        raise
    except Exception as error:
        trial.set_user_attr("error", runs.reason(error)[:500])
        raise TrialFailedError(str(error)) from error


def _run_trial(trial: Trial, task: Task) -> float | Sequence[float]:
    """One trial: a tracked child run of the study, or one with a child a seed."""
    settings = task.experiment.sweep
    drawn = changes(task.space, ask(trial)) | threat(task.experiment)
    trial.set_user_attr("changes", drawn)
    own: dict[str, Any] = {"tracking.register": "never", "evaluation.twin": False}
    if task.experiment.tracking.models == "winners":
        own |= {"tracking.models": False, "tracking.keep_rounds": []}
    experiment = task.experiment.override(drawn | own)
    measure = _several_seeds if settings.seeds else _one_seed
    measured = measure(trial, task, experiment, f"#{trial.number}")
    tracking.rename(tracking.client(), measured.run_id, trial_name(trial.number, measured))
    trial.set_user_attr("run_id", measured.run_id)
    trial.set_user_attr("rounds", measured.rounds)
    for metric, missed in measured.missed.items():
        trial.set_constraint(metric, missed)
    if measured.stopped:
        if not measured.pruned:
            trial.set_user_attr("error", measured.stopped)
        if len(settings.metrics) == 1:
            raise optuna.TrialPruned(measured.stopped)
    for metric, value in zip(settings.metrics, measured.values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{metric} is {value}: there is nothing to compare")
    return measured.values[0] if len(settings.metrics) == 1 else measured.values


class _Measured(NamedTuple):
    """What a trial came to.

    Attributes:
        run_id: its run.
        rounds: how many were done.
        values: one for each metric.
        missed: by how much constraints are.
        stopped: why it ended early, or None.
        pruned: whether it was Optuna that ended it.
    """

    run_id: str
    rounds: int
    values: list[float]
    missed: dict[str, float]
    stopped: str | None
    pruned: bool


def trial_name(number: int, measured: _Measured) -> str:
    """What tells a trial from the others within the 16 characters that MLflow's table shows.

    Example:
        >>> trial_name(11, _Measured("run", 8, [0.99981], {}, None, pruned=False))
        '#11 0.9998'
        >>> trial_name(7, _Measured("run", 3, [0.2], {}, "pruned after round 2", pruned=True))
        '#7 pruned r2'
        >>> trial_name(3, _Measured("run", 8, [0.5, 0.25], {"global/accuracy": 0.1}, None, pruned=False))
        '#3 0.5000 0.2500, breaks a constraint'
    """
    if measured.pruned:
        kind, place = str(measured.stopped).split()[-2:]
        return f"#{number} pruned {kind[0]}{place}"
    figures = " ".join(f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}" for value in measured.values)
    broken = ", breaks a constraint" if any(missed > 0 for missed in measured.missed.values()) else ""
    return f"#{number} {figures}{broken}"


def _one_seed(trial: Trial, task: Task, experiment: Experiment, title: str) -> _Measured:
    """The experiment with its own seed; Optuna may end it after any round."""
    settings = experiment.sweep
    watcher = Watcher(trial, settings.metrics[0]) if len(settings.metrics) == 1 else Watcher()
    under = runs.Under(task.run_id, "trial", title)
    outcome = runs.run(experiment, task.label, watcher.beside(), under, task.warmups)
    values = [score(watcher.history, metric) for metric in settings.metrics]
    missed = violations(watcher.history, settings.constraints)
    return _Measured(outcome.run_id, watcher.rounds, values, missed, outcome.stopped, watcher.pruned)


def _several_seeds(trial: Trial, task: Task, experiment: Experiment, title: str) -> _Measured:
    """The experiment with one seed after the other under a run of the trial; Optuna may end it after any seed."""
    store = tracking.client()
    run_id = tracking.create_run(store, experiment, title, "trial", task.run_id, **{"fl.experiment": task.label})
    with tracking.ended_as_it_is(store, run_id):
        return _seed_by_seed(trial, task, experiment, run_id)


def _seed_by_seed(trial: Trial, task: Task, experiment: Experiment, run_id: str) -> _Measured:
    settings, store = experiment.sweep, tracking.client()
    found: list[_Measured] = []
    stopped, pruned = None, False
    for position, seed in enumerate(settings.seeds):
        watcher = Watcher()
        own, under = runs.one_seed(experiment, seed), runs.Under(run_id, "seed", f"seed {seed}")
        outcome = runs.run(own, task.label, watcher.beside(), under, task.warmups)
        values = [score(watcher.history, metric) for metric in settings.metrics]
        missed = violations(watcher.history, settings.constraints)
        found.append(_Measured(outcome.run_id, watcher.rounds, values, missed, outcome.stopped, pruned=False))
        if stopped := outcome.stopped:
            break
        if len(settings.metrics) == 1:
            trial.report(values[0], position)
            if position + 1 < len(settings.seeds) and trial.should_prune():
                stopped, pruned = f"pruned after seed {seed}", True
                break
    spread = {
        metric: interval([one.values[place] for one in found], bounds(metric))
        for place, metric in enumerate(settings.metrics)
    }
    tracking.log_summary(store, run_id, spread)
    tracking.end_early(store, run_id, stopped) if pruned else tracking.end_run(store, run_id, "FINISHED", stopped)
    missed = {name: sum(one.missed[name] for one in found) / len(found) for name in settings.constraints}
    rounds = sum(one.rounds for one in found)
    return _Measured(run_id, rounds, [one.mean for one in spread.values()], missed, stopped, pruned)
