"""The database of the searches may be damaged or locked."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fl_lightning import tracking
from fl_lightning.search import _storage as studies
from fl_lightning.search import studies_url
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
