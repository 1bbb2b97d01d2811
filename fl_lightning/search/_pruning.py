"""When a trial is given up: successive halving over its rounds, Wilcoxon's test over its seeds.

References:
    Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.
    Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020 (decides without waiting for other trials).
"""

import math
from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from fl_lightning.config import SweepSettings

__all__ = ["Halving", "pruner"]


class Halving(BasePruner):
    """Successive halving: after 1, 3, 9, ... times the first rounds the best third goes on.

    A trial is compared with what all others had at the same round, finished, given up or still under way; not with those that
    failed, or broke a constraint in the end, whose figures no other trial should have to reach. The first of all has no rival;
    of equals the earlier one goes on.

    Args:
        first: rounds before the first comparison.
        factor: one of so many goes on, to so many times the rounds.
    """

    def __init__(self, first: int, factor: int = 3):
        self.first = first
        self.factor = factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial, right after its last report, is not among those that go on."""
        step = trial.last_step
        if step is None or not self._compared(step, trial):
            return False
        sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
        own = sign * trial.intermediate_values[step]
        rivals = [
            sign * other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and step in other.intermediate_values
            if not _broke_a_constraint(other) and not _failed(other)
        ]
        places = math.ceil((len(rivals) + 1) / self.factor)
        return sum(value >= own for value in rivals) >= places

    def _compared(self, step: int, trial: FrozenTrial) -> bool:
        """Whether a comparison is due since the report before; where not every round reports, the next one counts."""
        before = max((earlier for earlier in trial.intermediate_values if earlier < step), default=-1)
        rounds = self.first
        while rounds <= step + 1:
            if before + 1 < rounds:
                return True
            rounds *= self.factor
        return False


def _broke_a_constraint(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and any(missed > 0 for missed in trial.constraints.values())


def _failed(trial: FrozenTrial) -> bool:
    """Whether a trial came to nothing; one that was killed is run again, and would be its own rival."""
    return trial.state == TrialState.FAIL


def pruner(settings: SweepSettings, rounds: int) -> BasePruner:
    """The pruner that a search asks for.

    Args:
        settings: the search.
        rounds: how many rounds a trial reports: those from the first attacked one on.
    """
    made: dict[str, Callable[[], BasePruner]] = {
        # A quarter: what is strongest after a sixth of the rounds is too often another attack than in the end.
        "halving": lambda: Halving(max(2, rounds // 4)),
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, rounds // 3)),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=max(1, rounds // 6), max_resource=rounds),
        # Of three seeds the smallest p-value is 1/8: with Optuna's 0.1 a trial of three seeds would never be given up.
        "wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.2, n_startup_steps=2),
        "none": optuna.pruners.NopPruner,
    }
    return made[settings.chosen_pruner]()
