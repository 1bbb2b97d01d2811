"""A bandit over what a search chooses among first, such as the attack; the settings of what it chose are drawn by TPE.

References:
    Auer, Cesa-Bianchi, Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", Machine Learning 47, 2002, figure 1
    (UCB1). Here an arm is worth its best trial, not its mean: what is looked for is a maximum.
    Bergstra, Bardenet, Bengio, Kegl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (TPE).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from fl_lightning.search._ended import MEASURED, feasible, was_killed

__all__ = ["Bandit", "Standing", "next_arm", "standing"]

CURIOSITY = 0.5
"""Weight of the bonus: of eleven trials, an arm tried once catches up with one tried ten times from half of the range behind."""

DRAWN_FIRST = 3
"""Trials of an arm before TPE models its settings."""


class Standing(NamedTuple):
    """How an arm stands.

    Attributes:
        best: the best value of its finished trials, large is good; None: none came to its end and held the constraints.
        tried: how many trials were begun with it, or wait in the queue.
    """

    best: float | None
    tried: int


def next_arm(arms: Mapping[Any, Standing]) -> Any:
    """The arm to try next: the one of largest u + 0.5 sqrt(ln n / n_a), where u runs from 0 to 1 over the arms' best values.

    Args:
        arms: the arms in their order.

    Returns:
        An arm that was never tried, the first of these; else the one of largest index, of equals the first.

    Example:
        >>> next_arm({"a": Standing(0.9, 1), "b": Standing(0.1, 1), "c": Standing(None, 0)})
        'c'
        >>> next_arm({"a": Standing(0.9, 1), "b": Standing(0.1, 1)})
        'a'
        >>> next_arm({"a": Standing(0.9, 30), "b": Standing(0.6, 1), "c": Standing(0.1, 1)})
        'b'
    """
    for arm, stands in arms.items():
        if not stands.tried:
            return arm
    values = [stands.best for stands in arms.values() if stands.best is not None]
    floor, top = (min(values), max(values)) if values else (0.0, 0.0)
    total = sum(stands.tried for stands in arms.values())

    def index(arm: Any) -> float:
        best, tried = arms[arm]
        worth = 0.0 if best is None or top == floor else (best - floor) / (top - floor)
        return worth + CURIOSITY * math.sqrt(math.log(total) / tried)

    return max(arms, key=index)


def standing(trials: Sequence[FrozenTrial], parameter: str, arms: Sequence[Any], sign: int) -> dict[Any, Standing]:
    """How every arm stands.

    A trial that was given up, failed or broke a constraint counts as tried and has no value: what it showed in its first rounds
    compares with nothing. One that is under way, or waits in the queue, counts as tried; one that was killed does not.

    Args:
        trials: all others.
        parameter: which one the arm is.
        arms: its choices.
        sign: 1 where large values are good, -1 where small ones are.
    """
    stands = dict.fromkeys(arms, Standing(None, 0))
    for trial in trials:
        arm = trial.params.get(parameter, trial.system_attrs.get("fixed_params", {}).get(parameter))
        if arm not in stands or was_killed(trial):
            continue
        best, tried = stands[arm]
        if trial.state == TrialState.COMPLETE and feasible(trial):
            value = sign * trial.values[0]
            best = value if best is None else max(best, value)
        stands[arm] = Standing(best, tried + 1)
    return stands


class Bandit(optuna.samplers.BaseSampler):
    """Draws the first parameter of a trial, if it is a choice, by `next_arm`, all others by TPE over the trials of that arm.

    Args:
        seed: of the draws of one trial.
    """

    def __init__(self, seed: int):
        self.coins = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter is drawn alone: which ones there are follows from the arm."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The arm, or one of its settings."""
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        if not trial.params and isinstance(param_distribution, CategoricalDistribution):
            sign = 1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
            return next_arm(standing(others, param_name, param_distribution.choices, sign))
        arm = next(iter(trial.params), None)
        if arm and not isinstance(trial.distributions[arm], CategoricalDistribution):
            arm = None
        measured = [other for other in others if other.state in MEASURED and param_name in other.params]
        peers = [other for other in measured if arm is None or other.params.get(arm) == trial.params[arm]]
        return self._setting(study, peers, param_name, param_distribution)

    def _setting(
        self, study: optuna.Study, peers: Sequence[FrozenTrial], name: str, distribution: BaseDistribution
    ) -> Any:
        """A value drawn by TPE that sees nothing but the peers."""
        tpe = optuna.samplers.TPESampler(seed=int(self.coins.integers(2**32)), n_startup_trials=DRAWN_FIRST)
        own = optuna.create_study(directions=study.directions, sampler=tpe)
        own.add_trials(
            optuna.trial.create_trial(
                state=peer.state,
                values=peer.values,
                params={name: peer.params[name]},
                distributions={name: peer.distributions[name]},
                intermediate_values=peer.intermediate_values,
                constraints=peer.constraints,
            )
            for peer in peers
        )
        return own.ask({name: distribution}).params[name]
