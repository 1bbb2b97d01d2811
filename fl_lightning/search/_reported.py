"""Whether a run reports what a search looks at: found out before it begins, on two rounds of synthetic data."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fl_lightning.attacks import Choice
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError, excerpt, suggest
from fl_lightning.federation import Federation
from fl_lightning.metrics import GLOSSARY, meaning
from fl_lightning.search._space import Space

__all__ = ["check_metrics", "check_reported"]

LATE = (
    "attack/persistence",
    "attack/persistence_for_good",
    "attack/persists",
    "attack/persistence_benign_error",
    "attack/persists_benign_error",
)
"""Reported some rounds after the last attacked one: two rounds do not show them."""


def check_reported(experiment: Experiment, space: Space) -> None:
    """Refuse metrics and constraints of a search that no trial reports.

    Raises:
        ConfigError: naming the metric, and those that there are.
    """
    settings = experiment.sweep
    wanted = {"sweep.metric": settings.metrics, "sweep.constraints": tuple(settings.constraints)}
    check_metrics(experiment.override({"evaluation.twin": False, "evaluation.effect": False}), wanted, space)


def check_metrics(
    experiment: Experiment, wanted: Mapping[str, Sequence[str]], space: Space = MappingProxyType({})
) -> None:
    """Refuse metrics that no round of an experiment reports.

    Args:
        experiment: the experiment.
        wanted: names of metrics by the field that names them.
        space: what a search changes.

    Raises:
        ConfigError: naming the metric, and those that there are.
    """
    unsure = [
        (field, name) for field, names in wanted.items() for name in names if name not in (*LATE, "attack/success")
    ]
    for field, name in unsure:
        if meaning(name) is None:
            raise ConfigError(f"no run reports {excerpt(name)}; {suggest(name, GLOSSARY)}", field)
    if not unsure:
        return
    reported = _reported(experiment)
    for field, name in unsure:
        # Another attack of the space may report figures of its own.
        if name not in reported and not (name.startswith("attack/") and isinstance(space.get("attack"), Choice)):
            raise ConfigError(f"no round reports {excerpt(name)}; {suggest(name, reported)}", field)


def _reported(experiment: Experiment) -> set[str]:
    changes: dict[str, Any] = {"evaluation.every": 1, "sweep": {}}
    short = experiment.override(changes | {"participation.schedule": {"name": "always"}}).faster()
    history = Federation(short).run().history
    return {name for figures in history for name in figures if not name.startswith("time/")}
