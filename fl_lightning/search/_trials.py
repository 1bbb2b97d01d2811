"""What one trial of a search draws, watches and reports to Optuna."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.trial import Trial

from fl_lightning import runs, tracking
from fl_lightning.attacks import Choice
from fl_lightning.config import REACHED, Experiment, parse_bound
from fl_lightning.errors import ConfigError, suggest
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.metrics import bounds, interval
from fl_lightning.runs import attack_start
from fl_lightning.search._space import Ask, Span, changes, search_space
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
            federation.state.stopped = f"pruned after round {report.round}"

    def beside(self, watch: runs.Watch) -> runs.Watch:
        """This observer and those that `watch` makes."""
        return lambda experiment: [self, *watch(experiment)]


def ask(trial: Trial) -> Ask:
    """Draws from Optuna."""

    def draw(name: str, span: Span) -> Any:
        if isinstance(span, Choice):
            return trial.suggest_categorical(name, list(span.values))
        if span.integer:
            return trial.suggest_int(name, int(span.low), int(span.high), log=span.log)
        return trial.suggest_float(name, span.low, span.high, log=span.log)

    return draw


def no_observers(experiment: Experiment) -> tuple[()]:
    """No further observers."""
    return ()


class TrialFailedError(RuntimeError):
    """A trial that came to no figure; the reason is among its attributes, and the search goes on."""


def run_trial(trial: Trial, task: Task, base: Experiment) -> float | Sequence[float]:
    """One trial, whatever becomes of it.

    Raises:
        TrialFailedError: it came to no figure.
        TrialPruned: it was given up.
        ConnectionError: the store went away; the trial counts as killed, and is run again.
    """
    try:
        return _run_trial(trial, task, base)
    except (optuna.TrialPruned, ConnectionError):
        raise
    except Exception as error:
        trial.set_user_attr("error", runs.reason(error)[:500])
        raise TrialFailedError(str(error)) from error


def _run_trial(trial: Trial, task: Task, base: Experiment) -> float | Sequence[float]:
    """One trial: a tracked child run of the study, or one with a child a seed."""
    settings = base.sweep
    drawn = changes(search_space(base), ask(trial))
    trial.set_user_attr("changes", drawn)
    experiment = base.override(drawn | {"tracking.register": "never", "evaluation.twin": False})
    title = f"trial {trial.number}: {experiment.attack.name if experiment.attack else 'no attack'}"
    measure = _several_seeds if settings.seeds else _one_seed
    measured = measure(trial, task, experiment, title)
    trial.set_user_attr("run_id", measured.run_id)
    trial.set_user_attr("rounds", measured.rounds)
    for metric, missed in measured.missed.items():
        trial.set_constraint(metric, missed)
    if measured.stopped and not measured.stopped.startswith(REACHED):
        if not measured.stopped.startswith("pruned"):
            trial.set_user_attr("error", measured.stopped)
        if len(settings.metrics) == 1:
            raise optuna.TrialPruned(measured.stopped)
    for metric, value in zip(settings.metrics, measured.values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{metric} is {value}: there is nothing to compare")
    return measured.values[0] if len(settings.metrics) == 1 else measured.values


class _Measured(NamedTuple):
    """What a trial came to: its run, rounds done, a value for each metric, by how much constraints are missed, why it ended."""

    run_id: str
    rounds: int
    values: list[float]
    missed: dict[str, float]
    stopped: str | None


def _one_seed(trial: Trial, task: Task, experiment: Experiment, title: str) -> _Measured:
    """The experiment with its own seed; Optuna may end it after any round."""
    settings = experiment.sweep
    watcher = Watcher(trial, settings.metrics[0]) if len(settings.metrics) == 1 else Watcher()
    outcome = runs.run(experiment, task.label, watcher.beside(no_observers), task.run_id, "trial", task.warmups, title)
    values = [score(watcher.history, metric) for metric in settings.metrics]
    missed = violations(watcher.history, settings.constraints)
    return _Measured(outcome.run_id, watcher.rounds, values, missed, outcome.stopped)


def _several_seeds(trial: Trial, task: Task, experiment: Experiment, title: str) -> _Measured:
    """The experiment with one seed after the other under a run of the trial; Optuna may end it after any seed."""
    store = tracking.client()
    run_id = tracking.create_run(store, experiment, title, "trial", task.run_id, **{"fl.experiment": task.label})
    with tracking.ended_as_it_is(store, run_id):
        return _seed_by_seed(trial, task, experiment, run_id)


def _seed_by_seed(trial: Trial, task: Task, experiment: Experiment, run_id: str) -> _Measured:
    settings, store = experiment.sweep, tracking.client()
    found: list[_Measured] = []
    stopped = None
    for position, seed in enumerate(settings.seeds):
        watcher = Watcher()
        own = runs.one_seed(experiment, seed)
        outcome = runs.run(own, task.label, watcher.beside(no_observers), run_id, "seed", task.warmups, f"seed {seed}")
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
    spread = {
        metric: interval([one.values[place] for one in found], bounds(metric))
        for place, metric in enumerate(settings.metrics)
    }
    tracking.log_summary(store, run_id, spread)
    tracking.end_run(store, run_id, "FINISHED", stopped)
    missed = {name: sum(one.missed[name] for one in found) / len(found) for name in settings.constraints}
    rounds = sum(one.rounds for one in found)
    return _Measured(run_id, rounds, [one.mean for one in spread.values()], missed, stopped)
