"""Metrics on disk: nothing is lost, nothing is sent under another timestamp."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_lightning.tracking import _journal as module
from fl_lightning.tracking._journal import Entry, Journal, read_entries


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


class Server:
    """Takes entries; refuses while `down`."""

    def __init__(self, down: bool = False):
        self.down = down
        self.entries: list[Entry] = []
        self.refused = 0
        self.batches: list[int] = []

    def __call__(self, entries: list[Entry]) -> None:
        if self.down:
            self.refused += 1
            raise ConnectionError("gone")
        self.batches.append(len(entries))
        self.entries.extend(entries)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_entries_are_on_disk_at_once_and_delivered_in_order(tmp_path: Path):
    server, path = Server(), tmp_path / "journal.jsonl"
    journal = Journal(path, server)
    assert journal.last_step == -1
    before = time.time_ns() // 1_000_000
    for step in range(5):
        journal.append(step, {"a": step / 3, "b": -1.0})
        assert len(path.read_text().splitlines()) == step + 1, "written before append returns"
    after = time.time_ns() // 1_000_000
    assert journal.last_step == 4
    assert journal.close(patience=10) == 0
    assert [entry.step for entry in server.entries] == [0, 1, 2, 3, 4]
    assert [entry.metrics for entry in server.entries] == [{"a": step / 3, "b": -1.0} for step in range(5)]
    assert all(before <= entry.timestamp <= after for entry in server.entries)
    assert read_entries(path) == server.entries


def test_the_mapping_may_be_changed_after_append(tmp_path: Path):
    server = Server(down=True)
    journal = Journal(tmp_path / "journal.jsonl", server)
    metrics = {"a": 1.0}
    journal.append(0, metrics)
    metrics["a"] = 2.0
    server.down = False
    assert journal.close(10) == 0
    assert server.entries[0].metrics == {"a": 1.0}


def test_a_round_is_written_once(tmp_path: Path):
    server, path = Server(), tmp_path / "journal.jsonl"
    journal = Journal(path, server)
    journal.append(0, {"a": 1.0})
    journal.append(1, {"a": 2.0})
    journal.append(1, {"a": 3.0})
    journal.append(0, {"a": 4.0})
    assert journal.close(10) == 0
    assert [(entry.step, entry.metrics["a"]) for entry in server.entries] == [(0, 1.0), (1, 2.0)]
    assert len(path.read_text().splitlines()) == 2


def test_appending_never_waits_for_the_server(tmp_path: Path):
    gate = threading.Event()
    journal = Journal(tmp_path / "journal.jsonl", lambda entries: gate.wait(10) and None)
    begin = time.monotonic()
    for step in range(20):
        journal.append(step, {})
    assert time.monotonic() - begin < 5
    gate.set()
    assert journal.close(10) == 0


def test_a_server_that_comes_back_gets_everything_in_order(tmp_path: Path):
    server = Server(down=True)
    journal = Journal(tmp_path / "journal.jsonl", server)
    for step in range(4):
        journal.append(step, {"a": float(step)})
    wait_for(lambda: server.refused >= 3)
    assert isinstance(journal.error, ConnectionError)
    server.down = False
    wait_for(lambda: len(server.entries) == 4)
    journal.append(4, {"a": 4.0})
    assert journal.close(10) == 0
    assert journal.error is None
    assert [entry.step for entry in server.entries] == [0, 1, 2, 3, 4]
    assert max(server.batches) >= 2, "what has gathered is sent in one batch"


def test_close_waits_for_patience_and_counts_what_is_left(tmp_path: Path):
    server, path = Server(down=True), tmp_path / "journal.jsonl"
    journal = Journal(path, server)
    for step in range(3):
        journal.append(step, {"a": float(step)})
    begin = time.monotonic()
    assert journal.close(patience=0.2) == 3
    assert 0.15 < time.monotonic() - begin < 5
    assert len(read_entries(path)) == 3
    server.down = False  # let the thread end


def test_close_delivers_when_the_server_returns_within_patience(tmp_path: Path):
    server = Server(down=True)
    journal = Journal(tmp_path / "journal.jsonl", server)
    journal.append(0, {"a": 1.0})
    threading.Timer(0.1, lambda: setattr(server, "down", False)).start()
    assert journal.close(patience=10) == 0
    assert len(server.entries) == 1


def test_an_empty_journal_closes_at_once(tmp_path: Path):
    begin = time.monotonic()
    assert Journal(tmp_path / "journal.jsonl", Server()).close(patience=30) == 0
    assert time.monotonic() - begin < 5


def test_resuming_delivers_everything_again_with_the_same_timestamps(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    first = Server()
    journal = Journal(path, first)
    journal.append(0, {"a": 0.1})
    journal.append(1, {"a": float("nan"), "b": float("inf")})
    assert journal.close(10) == 0

    second = Server()
    resumed = Journal(path, second)
    assert resumed.last_step == 1
    resumed.append(1, {"a": 9.0})  # this round is run again after a kill
    resumed.append(2, {"a": 0.3})
    assert resumed.close(10) == 0
    assert [json.dumps(entry) for entry in second.entries[:2]] == [json.dumps(entry) for entry in first.entries]
    assert second.entries[2].step == 2
    assert len(second.entries) == 3


@pytest.mark.parametrize("torn", ['[2, 17, {"a": 0.', '[2, 17, {"a": 0.5}]', "[2, 17", "\x00\x00\x00"])
def test_a_line_that_a_crash_cut_short_is_removed(tmp_path: Path, torn: str):
    path = tmp_path / "journal.jsonl"
    path.write_text('[0, 15, {"a": 1.0}]\n[1, 16, {"a": 2.0}]\n' + torn)
    server = Server()
    journal = Journal(path, server)
    assert journal.last_step == 1
    journal.append(2, {"a": 3.0})
    assert journal.close(10) == 0
    assert [(entry.step, entry.metrics["a"]) for entry in server.entries] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert server.entries[0].timestamp == 15
    assert [entry.step for entry in read_entries(path)] == [0, 1, 2]


def test_nothing_after_a_spoilt_line_is_believed(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_text('[0, 15, {"a": 1.0}]\n[1, 1\n[2, 17, {"a": 3.0}]\n')
    assert [entry.step for entry in read_entries(path)] == [0]
    assert path.read_text() == '[0, 15, {"a": 1.0}]\n'


def test_no_file_is_no_entries(tmp_path: Path):
    assert read_entries(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
