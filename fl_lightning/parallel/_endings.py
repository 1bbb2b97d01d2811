"""How processes end: SIGTERM is Ctrl-C, a worker ends with its parent, and so does a program that was started beside it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from types import FrameType

from fl_lightning.paths import SERVER, runs_folder, tracking_server

__all__ = ["begin_worker", "interruptible", "settings", "tied"]

GOODBYE_SECONDS = 10.0
"""How long a process may need to put its runs down before it is killed."""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, which `timeout`, systemd, Slurm and `docker stop` send, is Ctrl-C inside; only the first one counts.

    A program that has a handler of its own keeps it.
    """
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not mine:
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what is being put down now is not interrupted again
    raise KeyboardInterrupt


def settings() -> dict[str, str]:
    """What another process must know to use the same stores; MLflow may have written a server of its own into the environment."""
    return {"FL_LIGHTNING_RUNS": str(runs_folder()), SERVER: tracking_server() or ""}


def begin_worker(stores: Mapping[str, str]) -> None:
    """Make this process a worker: with its parent's stores, ended by its parent, and with it, however that ends."""
    os.environ.update(stores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the parent tells its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a parent that is being ended hands on that it ignores it
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


WATCHER = """
import os, signal, subprocess, sys, threading, time
program = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
def end():
    sys.stdin.buffer.read()  # ends when whoever holds the other end lets go of it, or dies
    os.killpg(0, signal.SIGTERM)
    time.sleep(float(sys.argv[1]))
    os.killpg(0, signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=end, daemon=True).start()
sys.exit(program.wait())
"""


@contextmanager
def tied(command: Sequence[str], **options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A program beside this one: it and all that it starts end with the block, or with this process, however that ends.

    Args:
        command: program and arguments.
        options: further ones of `subprocess.Popen`.
    """
    words = [sys.executable, "-c", WATCHER, str(GOODBYE_SECONDS), *command]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()
