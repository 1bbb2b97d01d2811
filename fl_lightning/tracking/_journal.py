"""Metrics on disk until the tracking server has them: a server that goes away, or a killed process, loses nothing."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "Journal"]

RETRY_SECONDS = 1.0


class Entry(NamedTuple):
    """Figures of one round.

    Attributes:
        step: the round.
        timestamp: milliseconds since the epoch; written once, so that sending an entry twice changes nothing.
        metrics: figures by name.
    """

    step: int
    timestamp: int
    metrics: dict[str, float]


class Journal:
    """Appends entries to a file and hands them, in batches and in order, to `deliver` in the background.

    Args:
        path: a JSON-lines file; existing entries are read and delivered again (delivery is idempotent).
        deliver: sends entries; an exception means that none counts as sent, and it is tried again.
    """

    def __init__(self, path: Path, deliver: Callable[[list[Entry]], None]):
        self.path = path
        self.deliver = deliver
        self.error: Exception | None = None
        self._entries = read_entries(path)
        self._sent = 0
        self._news = threading.Condition()
        self._closing = False
        self._file = path.open("a", encoding="utf-8")
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    @property
    def last_step(self) -> int:
        """The last round in the journal, -1 when it is empty."""
        return self._entries[-1].step if self._entries else -1

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write an entry to disk and wake the sender; a round that is there already is not written again."""
        if step <= self.last_step:
            return
        entry = Entry(step, time.time_ns() // 1_000_000, dict(metrics))
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        with self._news:
            self._entries.append(entry)
            self._news.notify()

    def close(self, patience: float) -> int:
        """Deliver what is left, for at most `patience` seconds; returns how many entries are still only on disk."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(patience)
        self._file.close()
        return len(self._entries) - self._sent

    def _work(self) -> None:
        while True:
            with self._news:
                while self._sent == len(self._entries) and not self._closing:
                    self._news.wait()
                batch = self._entries[self._sent :]
            if not batch:
                return
            try:
                self.deliver(batch)
                self._sent += len(batch)
                self.error = None
            except Exception as error:
                self.error = error
                time.sleep(RETRY_SECONDS)


def read_entries(path: Path) -> list[Entry]:
    """All complete entries of a file; from the first line on that a crash cut short, or that is none, all is removed."""
    if not path.is_file():
        return []
    entries: list[Entry] = []
    good = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            step, timestamp, metrics = json.loads(line)
            entry = Entry(int(step), int(timestamp), {str(name): float(value) for name, value in metrics.items()})
            if entry.step <= (entries[-1].step if entries else -1):
                break
            entries.append(entry)
        except (ValueError, TypeError, AttributeError):
            break
        good += len(line)
    with path.open("ab") as file:
        file.truncate(good)
    return entries
