"""Optuna's own plots of a study: history, slices, importance, contour, Pareto front."""

from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

__all__ = ["pictures"]


def pictures(study: optuna.Study, metrics: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of every plot that the study has enough trials for."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for position, metric in enumerate(metrics):

        def target(trial: FrozenTrial, position: int = position) -> float:
            return float(trial.values[position])

        suffix = "" if len(metrics) == 1 else f"_{metric.replace('/', '_')}"
        options: dict[str, Any] = {"target": target, "target_name": metric}
        yield f"history{suffix}", _figure(plots.plot_optimization_history(study, **options))
        if len({trial.values[position] for trial in complete}) < 2:
            continue
        if varied := _varied(complete):
            yield f"slices{suffix}", _figure(plots.plot_slice(study, params=varied, **options))
        shared = [name for name in varied if all(name in trial.params for trial in complete)]
        if len(complete) > 3 and len(shared) > 1:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            figure = plots.plot_param_importances(study, evaluator=evaluator, params=shared, **options)
            yield f"importance{suffix}", _figure(figure)
        if len(shared) > 1:
            yield f"contour{suffix}", _figure(plots.plot_contour(study, params=shared[:4], **options))
    if len(metrics) == 2:
        yield "pareto", _figure(plots.plot_pareto_front(study, target_names=list(metrics)))


def _varied(trials: list[FrozenTrial]) -> list[str]:
    """Parameters that at least two of the trials have with different values."""
    names = sorted({name for trial in trials for name in trial.params})
    return [name for name in names if len({trial.params[name] for trial in trials if name in trial.params}) > 1]


def _figure(axes: Any) -> Figure:
    figure: Figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
    return figure
