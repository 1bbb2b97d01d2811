"""Processes beside each other: locks on files, and each one's share of the cores."""

import fcntl
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from fl_lightning.errors import ConfigError
from fl_lightning.parallel import _ray as cluster
from fl_lightning.parallel._endings import begin_worker, settings

__all__ = ["Jobs", "Submit", "exclusive", "in_turn", "share_cores", "shared", "side_by_side"]

Jobs = Annotated[int, Field(ge=1)] | Literal["ray"]
"""How many processes work side by side; `ray`: one for each processor of the Ray cluster."""

Submit = Callable[..., "Future[Any]"]
"""Begins a call in another process: the function, then its arguments."""


@contextmanager
def exclusive(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file alone.

    Args:
        path: the lock file, made if need be.
        message: what to say where another process holds it.

    Raises:
        ConfigError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(message) from None
        yield


@contextmanager
def shared(path: Path, when_alone: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file together with other processes; the first one may clean up before the others come in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            when_alone()
        except BlockingIOError:
            pass
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold a lock file alone, after waiting for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def share_cores(jobs: Jobs) -> None:
    """Give this process the threads that it gets where `jobs` processes compute at once."""
    torch.set_num_threads(1 if jobs == "ray" else max(1, (os.cpu_count() or 1) // jobs))


@contextmanager
def side_by_side(jobs: Jobs) -> Iterator[Submit]:
    """Processes that work side by side on this machine, or wherever Ray has room; what interrupts this one ends them."""
    if jobs == "ray":
        with cluster.tasks() as submit:
            yield submit
        return
    spawn = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, spawn, initializer=begin_worker, initargs=(settings(),)) as pool:
        try:
            yield lambda function, *arguments: pool.submit(_call, function, *arguments)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()
            raise


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a worker; one that was told to end begins no other."""
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        os._exit(130)
