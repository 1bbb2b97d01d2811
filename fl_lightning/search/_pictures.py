"""Optuna's own plots of a study: history, slices, importance, contour, Pareto front."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
import optuna.visualization as moving
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

__all__ = ["moving_pictures", "pictures"]


def pictures(study: optuna.Study, metrics: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of every plot that the study has enough trials for."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for position, metric in enumerate(metrics):
        suffix = "" if len(metrics) == 1 else f"_{metric.replace('/', '_')}"
        options: dict[str, Any] = {"target": _value(position), "target_name": metric}
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
    if len(metrics) > 1:
        yield "pareto", _figure(plots.plot_pareto_front(study, **_two(metrics)))


def moving_pictures(study: optuna.Study, metrics: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Title and HTML of Optuna's plots as plotly draws them: they zoom, and tell what is under the mouse.

    The first piece brings plotly's program along; the others need it.
    """
    if not moving.is_available():  # a search of hours does not fail at its end for a picture
        yield "Pictures", "They need plotly: pip install plotly"
        return
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    program = True
    for title, figure in _plotly(study, metrics, complete):
        yield title, figure.to_html(full_html=False, include_plotlyjs=program, config={"displaylogo": False})
        program = False


def _plotly(study: optuna.Study, metrics: Sequence[str], complete: list[FrozenTrial]) -> Iterator[tuple[str, Any]]:
    varied = _varied(complete)
    shared = [name for name in varied if all(name in trial.params for trial in complete)]
    for position, metric in enumerate(metrics):
        options: dict[str, Any] = {"target": _value(position), "target_name": metric}
        yield f"History of {metric}", moving.plot_optimization_history(study, **options)
        if len({trial.values[position] for trial in complete}) < 2 or not varied:
            continue
        yield f"Settings and {metric}", moving.plot_parallel_coordinate(study, params=varied, **options)
        yield f"{metric} by setting", moving.plot_slice(study, params=varied, **options)
        if len(complete) > 3 and len(shared) > 1:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            yield (
                f"What {metric} depends on",
                moving.plot_param_importances(study, evaluator=evaluator, params=shared, **options),
            )
    if len(metrics) > 1:
        yield _front_title(metrics), moving.plot_pareto_front(study, **_two(metrics))
    if len(metrics) == 1:
        yield "While the trials ran", moving.plot_intermediate_values(study)


def _two(metrics: Sequence[str]) -> dict[str, Any]:
    """The first two metrics: of a front in more of them one sees nothing on paper; what is on it is decided by all."""
    return {"targets": lambda trial: (trial.values[0], trial.values[1]), "target_names": list(metrics[:2])}


def _front_title(metrics: Sequence[str]) -> str:
    further = f", on which trials are for their {' and '.join(metrics[2:])}, too" if len(metrics) > 2 else ""
    return f"Pareto front{further}"


def _value(position: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: float(trial.values[position])


def _varied(trials: list[FrozenTrial]) -> list[str]:
    """Parameters that at least two of the trials have with different values."""
    names = sorted({name for trial in trials for name in trial.params})
    return [name for name in names if len({trial.params[name] for trial in trials if name in trial.params}) > 1]


def _figure(axes: Any) -> Figure:
    figure: Figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
    return figure
