"""Runs beside each other: which ones, and what differs in their configurations."""

from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from fl_lightning import tracking
from fl_lightning.errors import ConfigError, excerpt

__all__ = ["differences", "find"]

ALL_DIGITS = 32


def differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Paths of the configuration whose values are not the same in all runs, with the values."""
    paths = sorted({path for run in runs for path in run.data.params})
    rows = {path: [run.data.params.get(path) for run in runs] for path in paths}
    return {path: values for path, values in rows.items() if len(set(values)) > 1}


def find(store: MlflowClient, word: str) -> Run:
    """A run by its id, or by the first digits of it where these are of one run only.

    Raises:
        ConfigError: no such run, or several.
    """
    if len(word) == ALL_DIGITS or not word.isalnum():
        return tracking.find_run(store, word)
    places = [experiment.experiment_id for experiment in store.search_experiments()]
    found: list[Any] = list(store.search_runs(places, f"attributes.run_id LIKE '{word}%'", max_results=2))
    if not found:
        raise ConfigError(f"no run begins with {excerpt(word)} in {tracking.tracking_uri()}")
    if len(found) > 1:
        raise ConfigError(f"several runs begin with {word}: {', '.join(run.info.run_id for run in found)}, ...")
    return tracking.find_run(store, found[0].info.run_id)
