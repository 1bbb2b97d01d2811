"""Where searches are kept: Optuna's database, and the locks of those who search in it at the same time.

By default a file beside the runs with lock files; `FL_LIGHTNING_STUDIES` names a PostgreSQL database that several machines
reach, whose own advisory locks take the place of the files: like those, they vanish with the process that held them.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from fl_lightning.errors import ConfigError
from fl_lightning.parallel import in_turn, shared
from fl_lightning.paths import embedded, runs_folder
from fl_lightning.tracking import StoreError

__all__ = ["making_tables", "searching", "storage", "studies_url", "told"]

HEARTBEAT_SECONDS = 20
PATIENCE_SECONDS = 60.0
"""How long a file that another process has locked is waited for."""
GOODBYE_SECONDS = 2.0
"""How long the database may need to notice that a process which held a lock was killed."""

Lock = Callable[[str], Any]
"""Calls one of the database's lock functions, and returns what it says."""


def studies_url() -> str:
    """Database of the searches: `FL_LIGHTNING_STUDIES`, by default `optuna.db` in the folder of the runs.

    Raises:
        ConfigError: neither SQLite nor PostgreSQL.
    """
    url = os.environ.get("FL_LIGHTNING_STUDIES") or f"sqlite:///{runs_folder() / 'optuna.db'}"
    if not url.startswith(("sqlite:", "postgresql:", "postgresql+")):
        kind = url.partition(":")[0]
        raise ConfigError(f"FL_LIGHTNING_STUDIES must be postgresql://... or sqlite:///..., got {kind}:...")
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)  # the driver that the extra `postgres` brings


def storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage in a database; what a dead worker leaves behind is found by its heartbeat."""
    settings: dict[str, Any] = (
        {"connect_args": {"timeout": PATIENCE_SECONDS}} if embedded(url) else {"pool_pre_ping": True}
    )
    return optuna.storages.RDBStorage(url, engine_kwargs=settings, heartbeat_interval=HEARTBEAT_SECONDS)


@contextmanager
def told(url: str) -> Iterator[None]:
    """Whatever is wrong with the database of the searches in one line.

    Raises:
        StoreError: it is damaged, locked, or does not answer.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = str(getattr(cause, "orig", cause)).splitlines()[0]
        if "locked" in reason:
            what = "another process holds it; end that process, or wait for it"
        elif embedded(url):
            what = "move it away, and searches begin anew, or put a copy that is whole in its place; the runs are not in it"
        else:
            what = "give the same command again when it answers"
        shown = make_url(url).render_as_string(hide_password=True)
        raise StoreError(f"cannot read the searches in {shown}: {reason}; {what}") from None


@contextmanager
def making_tables(url: str) -> Iterator[None]:
    """Alone in the database: two processes that make the tables at once break each other."""
    if embedded(url):
        with in_turn(runs_folder() / "optuna.lock"):
            yield
        return
    with _locks(url, "tables") as lock:
        lock("pg_advisory_lock")
        yield


@contextmanager
def searching(url: str, name: str, when_alone: Callable[[], None]) -> Iterator[None]:
    """At work on a study together with others, on whatever machine; the first one may clean up before the others come in.

    Args:
        url: the database.
        name: the study.
        when_alone: called if nobody else is at work on it.
    """
    if embedded(url):
        with shared(runs_folder() / f"{name}.lock", when_alone):
            yield
        return
    with _locks(url, name) as lock:
        deadline = time.monotonic() + GOODBYE_SECONDS
        while not (alone := lock("pg_try_advisory_lock")) and time.monotonic() < deadline:
            time.sleep(0.1)
        if alone:
            when_alone()
        lock("pg_advisory_lock_shared")
        if alone:
            lock("pg_advisory_unlock")
        yield


@contextmanager
def _locks(url: str, name: str) -> Iterator[Lock]:
    """Lock functions of PostgreSQL on one name; the end of the connection releases all that is held."""
    key = int.from_bytes(hashlib.blake2b(f"fl_lightning/{name}".encode(), digest_size=8).digest()) >> 1
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        connection = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()
    except ModuleNotFoundError as error:
        raise ConfigError(f"FL_LIGHTNING_STUDIES needs {error.name}: pip install 'fl-lightning[postgres]'") from None
    except (ArgumentError, OperationalError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no database at FL_LIGHTNING_STUDIES ({shown}): {reason}") from None
    with connection:
        yield lambda function: connection.exec_driver_sql(f"SELECT {function}({key})").scalar()
