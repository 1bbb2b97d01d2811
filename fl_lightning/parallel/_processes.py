"""Processes beside each other: locks on files, and each one's share of the cores."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, Literal

import torch
from filelock import FileLock, ReadWriteLock, Timeout
from pydantic import Field

from fl_lightning.errors import ConfigError
from fl_lightning.parallel import _ray as cluster
from fl_lightning.parallel._endings import GOODBYE_SECONDS, begin_worker, interruptible, settings

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
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(message) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def shared(path: Path, when_alone: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file together with other processes; the first one may clean up before the others come in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = ReadWriteLock(path)
    with suppress(Timeout), lock.write_lock(blocking=False):
        when_alone()
    with lock.read_lock():
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold a lock file alone, after waiting for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def share_cores(jobs: Jobs) -> None:
    """Give this process the threads that it gets where `jobs` processes compute at once."""
    torch.set_num_threads(1 if jobs == "ray" else max(1, (os.cpu_count() or 1) // jobs))


@contextmanager
def side_by_side(jobs: Jobs) -> Iterator[Submit]:
    """Processes that work side by side on this machine, or wherever Ray has room; what interrupts this one ends them.

    On this machine a process that dies costs the call that it was at, which raises `BrokenProcessPool`, and no other.
    """
    if jobs == "ray":
        with cluster.tasks() as submit:
            yield submit
        return
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for _ in range(jobs):
        idle.put(_process())
    begun: list[Future[Any]] = []
    before = set(multiprocessing.active_children())

    def submit_here(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        begun.append(threads.submit(_hand_over, idle, function, arguments))
        return begun[-1]

    try:
        with ThreadPoolExecutor(jobs) as threads:  # each waits for one process
            try:
                yield submit_here
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                _end_workers(before, begun)
                raise
    finally:
        while not idle.empty():
            idle.get().shutdown()


def _process() -> ProcessPoolExecutor:
    """A worker process, started by its first call; in a pool of its own, since one that dies breaks its pool."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=begin_worker, initargs=(settings(),))


def _hand_over(idle: "SimpleQueue[ProcessPoolExecutor]", function: Callable[..., Any], arguments: Any) -> Any:
    """The result of a call in an idle process."""
    process = idle.get()
    try:
        return process.submit(_call, function, *arguments).result()
    except BrokenProcessPool:
        process.shutdown()
        process = _process()
        raise
    finally:
        idle.put(process)


def _end_workers(before: set[BaseProcess], begun: Sequence[Future[Any]]) -> None:
    """Tell the workers to end, and kill those that do not; told again, since one may just have been started."""
    deadline = time.monotonic() + GOODBYE_SECONDS
    while (workers := set(multiprocessing.active_children()) - before) or not all(call.done() for call in begun):
        for worker in workers:
            worker.terminate() if time.monotonic() < deadline else worker.kill()
        time.sleep(0.05)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a worker; one that was told to end puts down what it was at and begins no other."""
    try:
        with interruptible():
            return function(*arguments)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # the parent could not read it, and would take this process for dead
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
