"""The embedded store: one SQLite database with the artifacts beside it, whole or absent, and at home wherever its folder lies.

MLflow makes its tables by some fifty migrations that nothing guards, and writes the absolute folder of the artifacts into every
row. Here the tables are made under a lock in a file beside, which gets its name when it is complete; and what lies in the folder
is looked for where the folder lies now.
"""

import atexit
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_latest_schema_revision, _upgrade_db, create_sqlalchemy_engine
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import Pool

from fl_lightning.errors import ConfigError, excerpt
from fl_lightning.parallel import in_turn
from fl_lightning.paths import readable

# Private members of MLflow: it brings a database up to date by a command line only, which asks a person and knows no copy;
# and it offers no way to forget where the artifacts of a run lie.

__all__ = ["StoreError", "database_of", "file_of", "opened", "unwritable"]

LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns in which MLflow keeps absolute folders."""

PATIENCE_SECONDS = 20.0
"""How long a database that another process has locked is waited for."""

_ready: dict[Path, Path] = {}
"""Databases that this process has opened: as they are named, and where they are read (a copy, where none can write)."""

_seen: set[str] = set()
"""Databases that this process has seen with something in them."""

_latest: list[Path] = []
"""The database that was opened last."""


class StoreError(ConnectionError):
    """The store of the runs cannot be read: it is damaged, locked, or of another version."""


def file_of(path: str | Path) -> tuple[int, int] | None:
    """Which file lies at a path, whatever it is called; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@event.listens_for(Pool, "connect")
def _remember(connection: Any, record: Any) -> None:
    """Remember which file a connection to SQLite has opened: it goes on with that one, though it be deleted."""
    path = (
        connection.execute("PRAGMA database_list").fetchone()[2] if isinstance(connection, sqlite3.Connection) else ""
    )
    if not path:
        return
    record.info["file"] = path, file_of(path)
    if os.path.getsize(path):
        _seen.add(path)
    elif path in _seen:  # SQLite has just made an empty one in its place
        os.unlink(path)
        raise _deleted(path)


@event.listens_for(Pool, "checkout")
def _check(connection: Any, record: Any, proxy: Any) -> None:
    """Open the file that lies there now, where somebody has replaced it; SQLite itself would write to one that nobody sees."""
    path, opened_file = record.info.get("file", ("", None))
    now = file_of(path) if opened_file else None
    if opened_file and now is None:
        raise _deleted(path)
    if now != opened_file:
        raise DisconnectionError(f"{path} was replaced")


def _deleted(path: str) -> StoreError:
    return StoreError(
        f"{path} was deleted while this process worked with it: put it back, or begin again with a new one"
    )


def database_of(uri: str) -> Path:
    """The file of a SQLite database.

    Raises:
        ConfigError: a path that cannot be written as a database's address.
    """
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    if not readable(str(path)):
        raise ConfigError(
            f"this locale cannot read the name of the folder {excerpt(str(path))}: set PYTHONUTF8=1 or LC_ALL=C.UTF-8, or "
            "FL_LIGHTNING_RUNS to another folder"
        )
    if "?" in str(path) or unquote(str(path)) != str(path):
        raise ConfigError(
            f"the address of a database can hold neither '?' nor '%' before two digits: {path}; "
            "set FL_LIGHTNING_RUNS to another folder"
        )
    return path


def unwritable(database: Path) -> str | None:
    """Why a database cannot be written, or None; its folder is made if need be."""
    folder = database.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if database.exists():
            database.open("r+b").close()
    except OSError as error:
        return f"cannot write to {folder} ({error.strerror}); set FL_LIGHTNING_RUNS to a folder that can be written"
    return None


def opened(database: Path, home: Path) -> str:
    """Address of a database that is whole, and whose artifacts are those that lie at home.

    A database that cannot be written is read from a copy, which ends with this process.

    Args:
        database: the file; made if it is absent.
        home: the folder of the runs, with `artifacts` in it.

    Raises:
        ConfigError: there is none, and none can be made.
        StoreError: it is no database, it is damaged, locked, or made by another version.
    """
    place = _ready.get(database)
    if place is None or not (place.is_file() and database.is_file()):
        reason = unwritable(database)
        if reason and not database.is_file():
            raise ConfigError(reason)
        with _told(database):
            if reason:
                place = _copied(database)
                _mend(place, home)
                _say(f"{database.parent} cannot be written: it is shown as it is, nothing new can be kept")
            else:
                place = database
                with in_turn(database.with_name("mlflow.lock")):
                    _mend(database, home)
        _ready[database] = place
    if _latest != [place]:  # MLflow remembers where the artifacts of a run lie, whatever store it was asked about
        _artifact_repos_cache.clear()
        _latest[:] = [place]
    return f"sqlite:///{place}"


@contextmanager
def _told(database: Path) -> Iterator[None]:
    """Whatever is wrong with a database in one line."""
    try:
        yield
    except (sqlite3.Error, SQLAlchemyError, MlflowException) as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        if "locked" in reason:
            what = "another process holds it; end that process, or wait for it"
        else:
            what = "move it away, and runs begin a new one, or put a copy that is whole in its place"
        raise StoreError(f"cannot read {database}: {reason}; {what}") from None


def _mend(database: Path, home: Path) -> None:
    """Make a database if it is absent or was left half made, bring an older one up to date, and move its artifacts in."""
    for left in database.parent.glob(f".{database.name}.*"):  # by a process that was killed while it made one
        left.unlink()
    if not database.exists():
        for left in (database.with_name(f"{database.name}{end}") for end in ("-journal", "-wal", "-shm")):
            left.unlink(
                missing_ok=True
            )  # of a database that somebody has removed: SQLite would apply it to the new one
        _make(database, home)
        return
    latest = _get_latest_schema_revision()  # type: ignore[no-untyped-call]
    with closing(_connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        revision = (
            _first(connection, "SELECT version_num FROM alembic_version") if "alembic_version" in tables else None
        )
        used = any(
            _first(connection, f"SELECT 1 FROM {name} LIMIT 1")
            for name in ("runs", "registered_models")
            if name in tables
        )
    if revision != latest and not used:
        _say(f"{database} was left half made by a process that was killed: made again; no run was in it")
        _make(database, home)
    elif revision != latest:
        _upgrade(database, str(revision), latest)
    _move_in(database, home)


def _make(database: Path, home: Path) -> None:
    partial = database.with_name(f".{database.name}.{os.getpid()}")
    store = SqlAlchemyStore(f"sqlite:///{partial}", (home / "artifacts").as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    partial.replace(database)


def _upgrade(database: Path, revision: str, latest: str) -> None:
    """Bring a database of an older MLflow up to date, in a copy; the old one stays beside it."""
    partial = database.with_name(f".{database.name}.{os.getpid()}")
    with closing(_connect(database)) as old, closing(sqlite3.connect(partial)) as new:
        old.backup(new)
        tables = [name for (name,) in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in tables:
            if name.startswith("_alembic_tmp_"):  # of a migration that was killed
                new.execute(f"DROP TABLE {name}")
        new.commit()
    engine = create_sqlalchemy_engine(f"sqlite:///{partial}")  # type: ignore[no-untyped-call]
    try:
        _upgrade_db(engine)  # type: ignore[no-untyped-call]
    except Exception as error:  # alembic has errors of its own
        reason = str(error).splitlines()[0]
        raise StoreError(
            f"{database} has the tables of another version of MLflow ({revision}; {mlflow.__version__} knows {latest}), "
            f"and they cannot be brought up to date: {reason}"
        ) from None
    finally:
        engine.dispose()
    kept = database.with_name(f"{database.name}.{revision}")
    shutil.copy2(database, kept)
    partial.replace(database)
    _say(f"{database} was brought up to date for MLflow {mlflow.__version__}; as it was: {kept}")


def _copied(database: Path) -> Path:
    """A copy that can be written, until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fl-lightning-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with (
        closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(folder / database.name)) as new,
    ):
        old.backup(new)
    return folder / database.name


def _move_in(database: Path, home: Path) -> None:
    """Point every location of a folder that was moved, copied or mounted elsewhere into the folder where it lies now."""
    with closing(_connect(database)) as connection, connection:
        moved = {}
        rows = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        for experiment, location in rows:
            if not (location or "").startswith(("file:", "/")):
                continue
            if _path(location).is_relative_to(home):
                continue
            if experiment == 0 and not _first(connection, "SELECT 1 FROM runs WHERE experiment_id = 0 LIMIT 1"):
                new = (home / "artifacts" / "0").as_uri()  # MLflow's default experiment, under wherever it was made
                connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", (new,))
            elif location.endswith("/artifacts") and _lie_here(connection, experiment, home):
                moved[location.removesuffix("/artifacts")] = location
        changed = sum(_rewrite(connection, old, home) for old in moved)
    for old in moved:
        _say(f"the runs of {_path(old)} lie in {home} now: {changed} locations point there")


def _lie_here(connection: sqlite3.Connection, experiment: int, home: Path) -> bool:
    """Whether the artifacts of an experiment are in this folder; of one without runs there are none to miss."""
    runs = [run for (run,) in connection.execute("SELECT run_uuid FROM runs WHERE experiment_id = ?", (experiment,))]
    return not runs or any((home / "artifacts" / run).is_dir() for run in runs)


def _rewrite(connection: sqlite3.Connection, old: str, home: Path) -> int:
    new = home.as_uri() if old.startswith("file:") else str(home)
    changed = 0
    for table, columns in LOCATIONS.items():
        for column in columns:
            inside = f"substr({column}, 1, {len(old) + 10}) = ?"
            changed += connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, {len(old) + 1}) WHERE {inside}",
                (new, f"{old}/artifacts"),
            ).rowcount
    return changed


def _path(location: str) -> Path:
    return Path(unquote(location.removeprefix("file://")))


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=PATIENCE_SECONDS)


def _first(connection: sqlite3.Connection, query: str) -> object:
    """The first value of the first row, or None."""
    row = connection.execute(query).fetchone()
    return row[0] if row else None


def _say(line: str) -> None:
    with suppress(Exception):
        logging.getLogger("fl_lightning").warning(line)
