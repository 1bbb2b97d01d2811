"""Two databases keep a search, MLflow's and Optuna's: each may be damaged, locked, deleted or replaced."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from fl_lightning import tracking
from fl_lightning.search import _storage as studies
from fl_lightning.search import studies_url, sweep
from fl_lightning.search._study import Task, quiet

SPACE = {"attack.std": {"low": 1e-4, "high": 10.0, "log": True}}


def searched(tiny: Any, **search: Any) -> Any:
    settings = {"trials": 2, "confirm_seeds": [7], "space": SPACE, "pruner": "none"} | search
    return tiny(attack="gaussian", rounds=1, tracking={"models": False}, sweep=settings)


def test_a_damaged_or_locked_database_of_searches_is_told_in_one_line(
    tiny: Any, runs_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    runs_folder.mkdir()
    quiet()
    database = runs_folder / "optuna.db"
    task = Task("x", studies_url(), searched(tiny), {}, "x")
    monkeypatch.setattr(studies, "PATIENCE_SECONDS", 0.1)
    with closing(sqlite3.connect(database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            tracking.StoreError, match=r"searches in .*optuna.db: database is locked; another process[^\n]*$"
        ):
            task.open()
    database.write_bytes(b"garbage" * 1000)
    with pytest.raises(tracking.StoreError, match=r"optuna.db: file is not a database; move it away[^\n]*$"):
        task.open()


def states(name: str) -> list[str]:
    return [trial.state.name for trial in optuna.load_study(study_name=name, storage=studies_url()).trials]


@pytest.mark.slow
def test_either_database_may_be_gone(tiny: Any, store_folder: Path, caplog: pytest.LogCaptureFixture):
    first = sweep(searched(tiny), "tiny")
    (store_folder / "mlflow.db").unlink()
    second = sweep(searched(tiny, trials=3), "tiny")
    assert "it has a new one" in caplog.text
    assert second.run_id != first.run_id
    assert states(first.study) == ["COMPLETE"] * 3  # those that were tried are not tried again
    assert [row["values"] for row in second.trials if row["number"] < 2] == [row["values"] for row in first.trials]
    store = tracking.client()
    assert len(store.get_metric_history(second.run_id, "sweep/attack/success")) == 3
    (store_folder / "optuna.db").unlink()
    third = sweep(searched(tiny), "tiny")
    assert [(row["number"], row["values"]) for row in third.trials] == [
        (row["number"], row["values"]) for row in first.trials
    ]
    assert {store.get_run(one.run_id).info.status for one in (second, third)} == {"FINISHED"}
