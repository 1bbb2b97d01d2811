"""How trials end: what counts as done, as measured, as killed, and which held the constraints."""

from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

__all__ = ["DONE", "MEASURED", "feasible", "killed", "was_killed"]

DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
MEASURED = (TrialState.COMPLETE, TrialState.PRUNED)


def feasible(trial: FrozenTrial) -> bool:
    """Whether it held the constraints."""
    return all(missed <= 0 for missed in trial.constraints.values())


def was_killed(trial: FrozenTrial) -> bool:
    """Whether its process ended before it: another trial takes its place."""
    return trial.state == TrialState.FAIL and "error" not in trial.user_attrs


def killed(trials: Iterable[FrozenTrial]) -> int:
    """How many were killed."""
    return sum(map(was_killed, trials))
