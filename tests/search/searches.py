"""Small searches that the tests share, and what is read of their studies."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import optuna

from fl_lightning.config import Experiment
from fl_lightning.search._storage import studies_url

ATTACKED: dict[str, Any] = {
    "attack": {"name": "gaussian", "std": 0.05},
    "participation": {"name": "full", "malicious": 2},
    "rounds": 6,
    "sweep": {"trials": 4, "confirm_seeds": [7, 8], "space": {"attack.std": {"low": 1e-4, "high": 10.0, "log": True}}},
}


LIGHT = {"tracking.models": False, "tracking.register": "never"}
"""Of searches whose figures are looked at, not their models."""


def searched(tiny: Any, **sweep_settings: Any) -> Experiment:
    experiment: Experiment = tiny(**ATTACKED | {"sweep": ATTACKED["sweep"] | sweep_settings})
    return experiment


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=studies_url())


def trial_states(folder: Path) -> dict[int, str]:
    """State of every trial that was begun by its number, read beside Optuna, which would make the tables itself.

    Not read-only: what a killed process left half written is rolled back by the next reader.
    """
    if studies_url().startswith("sqlite:"):
        if not (folder / "optuna.db").is_file():
            return {}
        connect = lambda: sqlite3.connect(folder / "optuna.db")  # noqa: E731
        unmade: type[Exception] = sqlite3.OperationalError
    else:
        import psycopg2

        url = studies_url().replace("postgresql+psycopg2", "postgresql")
        connect, unmade = lambda: psycopg2.connect(url), psycopg2.errors.UndefinedTable
    with contextlib.closing(connect()) as database, contextlib.closing(database.cursor()) as cursor:
        try:
            cursor.execute("SELECT number, state FROM trials WHERE state != 'WAITING'")
        except unmade:  # they are being made
            return {}
        return {int(number): str(state) for number, state in cursor.fetchall()}


def finished_trials(folder: Path) -> set[int]:
    return {number for number, state in trial_states(folder).items() if state in ("COMPLETE", "PRUNED")}
