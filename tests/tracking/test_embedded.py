"""The embedded store: made whole or not at all, mended, brought up to date, at home wherever its folder lies."""

import logging
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from sqlalchemy import NullPool, create_engine

from fl_lightning import tracking
from fl_lightning.errors import ConfigError
from fl_lightning.tracking import _embedded as embedded
from fl_lightning.tracking._embedded import StoreError, database_of, opened


def query(database: Path, text: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(text, values).fetchall()


def tables(database: Path) -> set[str]:
    return {name for (name,) in query(database, "SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_first_start_that_is_killed_and_several_at_once_make_one_whole_store(
    runs_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    database = runs_folder / "mlflow.db"

    def killed(uri: str, root: str) -> None:
        query(Path(uri.removeprefix("sqlite:///")), "CREATE TABLE runs (run_uuid)")
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(embedded, "SqlAlchemyStore", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(database, runs_folder)
    assert not database.exists()
    assert len(list(runs_folder.glob(".mlflow.db.*"))) == 1
    with ThreadPoolExecutor(4) as pool:
        uris = set(pool.map(lambda _: opened(database, runs_folder), range(4)))
    assert uris == {f"sqlite:///{database}"}
    assert {"runs", "experiments", "registered_models"} <= tables(database)
    assert query(database, "SELECT artifact_location FROM experiments") == [
        ((runs_folder / "artifacts" / "0").as_uri(),)
    ]
    assert {path.name for path in runs_folder.iterdir()} == {"mlflow.db", "mlflow.lock"}


def older(database: Path) -> str:
    """A database as the MLflow before the last migration made it; returns its revision."""
    engine = create_sqlalchemy_engine(f"sqlite:///{database}")
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{database}")
    script = ScriptDirectory.from_config(config)
    before = script.get_revision(script.get_heads()[0]).down_revision
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
    engine.dispose()
    return str(before)


RUN = "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage, artifact_uri) VALUES (?, ?, 'active', ?)"
EXPERIMENT = (
    "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace) "
    "VALUES (?, ?, ?, 'active', 'default')"
)


def test_a_store_of_an_older_version_is_brought_up_to_date(runs_folder: Path, caplog: pytest.LogCaptureFixture):
    runs_folder.mkdir()
    database = runs_folder / "mlflow.db"
    before = older(database)
    query(database, "CREATE TABLE _alembic_tmp_tags (key)")  # what a kill in the middle of a migration leaves
    query(database, EXPERIMENT, 1, "x", "/somewhere")
    query(database, RUN, "r", 1, "/somewhere/r")
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        opened(database, runs_folder)
    assert "was brought up to date" in caplog.text
    assert query(database, "SELECT run_uuid FROM runs") == [("r",)]
    assert "_alembic_tmp_tags" not in tables(database)
    assert query(runs_folder / f"mlflow.db.{before}", "SELECT version_num FROM alembic_version") == [(before,)]


def test_a_store_that_was_left_half_made_is_made_again(
    store_folder: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    database = store_folder / "mlflow.db"
    query(database, "DROP TABLE logged_models")
    query(database, "UPDATE alembic_version SET version_num = 'bd07f7e963c5'")
    monkeypatch.setattr(embedded, "_make", lambda database, home: shutil.copy(empty_database, database))
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        tracking.client()
    assert "left half made" in caplog.text
    assert "logged_models" in tables(database)


def test_what_was_moved_is_looked_for_where_it_lies_now(store_folder: Path, tmp_path: Path):
    database, old = store_folder / "mlflow.db", "file:///home/al%20ice/mlruns"
    for number, location in enumerate([f"{old}/artifacts", "/data/artifacts", "s3://bucket/artifacts"], 1):
        query(database, EXPERIMENT, number, str(number), location)
        query(database, RUN, f"run{number}", number, f"{location}/run{number}/artifacts")
    (store_folder / "artifacts" / "run1").mkdir(parents=True)
    tracking.client()
    here = store_folder.as_uri()
    assert query(database, "SELECT artifact_location FROM experiments ORDER BY experiment_id") == [
        (f"{here}/artifacts/0",),
        (f"{here}/artifacts",),
        ("/data/artifacts",),  # somebody else's: its runs do not lie here
        ("s3://bucket/artifacts",),
    ]
    assert query(database, "SELECT artifact_uri FROM runs ORDER BY run_uuid") == [
        (f"{here}/artifacts/run1/artifacts",),
        ("/data/artifacts/run2/artifacts",),
        ("s3://bucket/artifacts/run3/artifacts",),
    ]


def test_a_store_of_a_newer_version_is_refused(store_folder: Path):
    database = store_folder / "mlflow.db"
    query(database, "INSERT INTO runs (run_uuid, experiment_id) VALUES ('r', 0)")
    query(database, "UPDATE alembic_version SET version_num = 'f00dfeed'")
    with pytest.raises(StoreError, match=r"another version of MLflow \(f00dfeed"):
        tracking.client()


def test_a_damaged_or_locked_store_is_told_in_one_line(store_folder: Path, monkeypatch: pytest.MonkeyPatch):
    database = store_folder / "mlflow.db"
    with closing(sqlite3.connect(database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(embedded, "PATIENCE_SECONDS", 0.1)
        with pytest.raises(StoreError, match=r"is locked; another process holds it[^\n]*$"):
            tracking.client()
    database.write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"cannot read .*mlflow.db: file is not a database; move it away[^\n]*$"):
        tracking.client()


@pytest.mark.parametrize("folder", ["what?", "100%25x"])
def test_a_folder_that_no_address_can_hold_is_refused(folder: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="can hold neither"):
        database_of(f"sqlite:///{tmp_path / folder / 'mlflow.db'}")
    with pytest.raises(ConfigError, match="this locale cannot read the name of the folder"):
        database_of(f"sqlite:///{tmp_path / os.fsdecode(bytes([0xFF, 0xC3]))}")
    database_of(f"sqlite:///{tmp_path / '100% of ümlauts #1'}")


def test_what_mlflow_holds_as_current_neither_matters_nor_changes(
    store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # restored afterwards, whatever MLflow writes into it
    with tracking._store.as_current(elsewhere):
        assert os.environ["MLFLOW_TRACKING_URI"] == elsewhere
        assert tracking.tracking_uri() == f"sqlite:///{store_folder / 'mlflow.db'}"
        tracking.client()
        assert mlflow.get_tracking_uri() == elsewhere
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # by the user, after that
        assert tracking.tracking_uri() == "http://127.0.0.1:1"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(tmp_path / "moved"))
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path / 'moved' / 'mlflow.db'}"


def test_a_database_that_is_deleted_or_replaced_while_a_process_goes_on(store_folder: Path, empty_database: Path):
    database = store_folder / "mlflow.db"
    store = tracking.client()
    run_id = store.create_run("0").info.run_id
    another = create_engine(f"sqlite:///{database}", poolclass=NullPool)
    another.connect().close()
    database.unlink()
    with pytest.raises(StoreError, match="was deleted while"):
        another.connect()
    with pytest.raises(
        MlflowException, match=r"mlflow.db was deleted while this process worked with it: put it back[^\n]*$"
    ):
        store.set_tag(run_id, "a", "b")
    assert not database.exists()  # SQLite would make an empty one
    shutil.copy(empty_database, database)
    with pytest.raises(MlflowException, match="not found"):
        store.get_run(run_id)
    again = store.create_run("0").info.run_id  # in the file that lies there now
    assert query(database, "SELECT run_uuid FROM runs") == [(again,)]
    for cause in (f"Run with id={run_id} not found", f"{database} was deleted while"):
        told = str(tracking.TrackingGoneError(run_id, 3, store_folder, cause))
        assert "has not this run any more" in told
        assert "Put its database back" in told
