"""The best of every arm of a search, such as of every attack: who came second, and how far behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fl_lightning.attacks import Choice
from fl_lightning.config import SweepSettings
from fl_lightning.metrics import Interval, bounds, interval
from fl_lightning.search._ended import feasible, was_killed
from fl_lightning.search._first_trials import rank
from fl_lightning.search._space import Space

__all__ = ["RunnerUp", "arm", "best_of_arms", "runners_up", "untried"]

Confirm = Callable[[Mapping[str, Any], str], Mapping[str, Sequence[float]]]
"""Runs changes on the unseen seeds under a name of one word; the figures by metric."""


@dataclass(frozen=True)
class RunnerUp:
    """An arm that did not win.

    Attributes:
        arm: its name, such as that of an attack.
        trials: how often it was tried.
        searched: the best figure of a trial that came to its end and held the constraints; None: all were given up or failed.
        changes: the settings of that trial.
        confirmed: its figures on the unseen seeds, by metric; empty: it was not run there.
        behind: the winner's figure minus its own on these seeds, paired, in the first metric; positive: the winner is better.
    """

    arm: str
    trials: int
    searched: float | None
    changes: dict[str, Any] = field(default_factory=dict)
    confirmed: dict[str, Interval] = field(default_factory=dict)
    behind: Interval | None = None


def arm(space: Space) -> str | None:
    """The parameter that says what is tried with what settings: the first, if it is a choice among several."""
    path, span = next(iter(space.items()))
    return path if isinstance(span, Choice) and len(span.values) > 1 else None


def best_of_arms(study: optuna.Study, parameter: str) -> list[tuple[str, int, FrozenTrial | None]]:
    """Every arm that was tried, how often, and its best trial, the best arm first.

    Args:
        study: the search.
        parameter: which one the arm is.
    """
    tried: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if parameter in trial.params and trial.state.is_finished() and not was_killed(trial):
            tried.setdefault(str(trial.params[parameter]), []).append(trial)
    arms = [(name, len(trials), _best(study, trials)) for name, trials in tried.items()]
    return sorted(arms, key=lambda one: (one[2] is None, rank(study, one[2]) if one[2] else (True, 0.0, 0.0)))


def _best(study: optuna.Study, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and feasible(trial)]
    return min(complete, key=lambda trial: rank(study, trial), default=None)


def untried(study: optuna.Study, space: Space) -> list[str]:
    """Arms that no trial was begun with."""
    parameter = arm(space)
    if parameter is None:
        return []
    begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    tried = {trial.params.get(parameter) for trial in begun}
    span = space[parameter]
    return [str(value) for value in span.values if value not in tried] if isinstance(span, Choice) else []


def runners_up(
    study: optuna.Study,
    space: Space,
    settings: SweepSettings,
    winner: FrozenTrial,
    won: Sequence[float],
    confirm: Confirm,
) -> list[RunnerUp]:
    """The other arms of a search over a choice, the next best first; so many as asked for are run on the unseen seeds.

    Args:
        study: the search.
        space: what is searched.
        settings: how many are confirmed, and by what metrics.
        winner: the best trial.
        won: its figures in the first metric on the unseen seeds.
        confirm: runs changes on these seeds.
    """
    parameter = arm(space)
    if parameter is None:
        return []
    others = [one for one in best_of_arms(study, parameter) if one[0] != str(winner.params.get(parameter))]
    better = 1 if settings.directions[0] == "maximize" else -1
    told = []
    for place, (name, tried, best) in enumerate(others):
        if best is None:
            told.append(RunnerUp(name, tried, None))
            continue
        changes = best.user_attrs["changes"]
        if place >= settings.runners_up:
            told.append(RunnerUp(name, tried, best.values[0], changes))
            continue
        figures = confirm(changes, name)
        behind = [better * (a - b) for a, b in zip(won, figures[settings.metrics[0]], strict=True)]
        confirmed = {metric: interval(values, bounds(metric)) for metric, values in figures.items()}
        told.append(RunnerUp(name, tried, best.values[0], changes, confirmed, interval(behind)))
    return told
