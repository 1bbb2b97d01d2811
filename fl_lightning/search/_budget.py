"""How much of its time a search has used: counted from its trials, so that a search that is begun again goes on."""

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from fl_lightning.config import SweepSettings
from fl_lightning.search._ended import was_killed

__all__ = ["expected_trials", "minutes_spent", "used_up"]


def minutes_spent(trials: Sequence[FrozenTrial], workers: int) -> float:
    """Summed durations of the trials that came to an end, divided by the workers; killed ones ended nobody knows when."""
    ended = [trial.duration.total_seconds() for trial in trials if trial.duration and not was_killed(trial)]
    return sum(ended) / 60 / workers


def used_up(settings: SweepSettings, trials: Sequence[FrozenTrial], workers: int) -> bool:
    """Whether `sweep.minutes` are over: then no further trial begins."""
    return settings.minutes is not None and minutes_spent(trials, workers) >= settings.minutes


def expected_trials(settings: SweepSettings, trials: Sequence[FrozenTrial], workers: int) -> int:
    """How many trials there will be, if the next ones take as long as those before."""
    ended = sum(trial.state.is_finished() and not was_killed(trial) for trial in trials)
    spent = minutes_spent(trials, workers)
    if settings.minutes is None or not spent:
        return settings.trials
    return min(settings.trials, max(ended, math.ceil(ended * settings.minutes / spent)))
