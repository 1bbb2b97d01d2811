"""`kill -9` of every command that trains, at moments drawn from its whole course: the same command comes to the same figures.

Commands run in forks of this process, which has imported everything: what is killed is their work, from its first moment on, not
Python's imports. How long an undisturbed command takes is measured first, so that no machine is too fast or too slow.
`FL_LIGHTNING_KILLS` is how often each command is killed.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import TINY

import fl_lightning._matrix
import fl_lightning.papers
import fl_lightning.search  # noqa: F401 - imported before forks
from fl_lightning.cli import main

KILLS = int(os.environ.get("FL_LIGHTNING_KILLS", "20"))
SMALL: dict[str, Any] = TINY | {"rounds": 4}
ATTACKED: dict[str, Any] = {
    "attack": {"name": "gaussian", "std": 2.0},
    "server": {"optimizer": "adam", "lr": 0.05},
    "defenses": {"noise": {"name": "cdp", "std": 0.01}},
    "aggregator": "trimmed_mean",
}
KEPT = {"register": "always", "keep_rounds": [1, 2]}
SEARCH = {"trials": 3, "confirm_seeds": [7], "space": {"attack.std": {"low": 0.1, "high": 9.0}}, "pruner": "none"}
COMMANDS: dict[str, dict[str, Any]] = {
    "run": SMALL | ATTACKED | {"evaluation": {"twin": True}, "tracking": KEPT},
    "seeds": SMALL | ATTACKED | {"seeds": [0, 1, 2]},
    "sweep": SMALL | {"attack": "gaussian", "rounds": 3, "sweep": SEARCH},
    "matrix": {
        "base": SMALL | {"rounds": 2},
        "attacks": {"noise": "gaussian"},
        "servers": {"mean": {"aggregator": "mean"}, "median": {"aggregator": "median"}},
        "seeds": [0],
        "jobs": 1,
    },
    "reproduce": {
        "title": "noise",
        "setting": "none",
        "base": SMALL | {"rounds": 2},
        "rows": {"loud": {"attack": {"name": "gaussian", "std": 10.0}}, "quiet": {}},
        "sizes": {"quick": {"seeds": [0, 1], "minutes": 1}},
        "orders": [{"id": "O", "says": "it matters", "higher": "quiet", "lower": "loud", "metric": "global/accuracy"}],
    },
}


class Fork:
    """A command in a process group of its own."""

    def __init__(self, words: list[str], folder: Path):
        self.log = folder.with_suffix(".log")
        self.process = os.fork()
        if self.process:
            return
        try:
            os.setsid()
            os.environ["FL_LIGHTNING_RUNS"] = str(folder)
            os.environ["FL_LIGHTNING_RESULTS"] = str(
                folder / "results"
            )  # verdicts of other folders are not to be found
            with self.log.open("w", buffering=1) as sys.stdout:
                sys.stderr = sys.stdout
                os._exit(main(words))
        except BaseException:
            self.log.write_text(traceback.format_exc())
            os._exit(99)

    def wait(self) -> int:
        """The exit code; minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def kill_after(self, seconds: float) -> bool:
        """Kill it; whether it was still at work."""
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


class Finished(NamedTuple):
    """A run that came to its end: what it is, how many models it has, and all its figures by round."""

    what: tuple[str, ...]
    models: int
    rows: tuple[tuple[str, int, float], ...]


def query(folder: Path, text: str, *values: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=60)) as database:
        return database.execute(text, values).fetchall()


def finished(folder: Path) -> Counter[Finished]:
    """All runs that have come to their end, read without MLflow."""
    ended: Counter[Finished] = Counter()
    for (run,) in query(folder, "SELECT run_uuid FROM runs WHERE status = 'FINISHED'"):
        tags = dict(query(folder, "SELECT key, value FROM tags WHERE run_uuid = ?", run))
        points = query(folder, "SELECT key, step, value FROM metrics WHERE run_uuid = ?", run)
        assert len({(key, step) for key, step, _ in points}) == len(points), "a figure stands twice in a round"
        rows = sorted(point for point in points if not point[0].startswith("time/"))
        (models,) = query(folder, "SELECT count(*) FROM logged_models WHERE source_run_id = ? AND status = 2", run)
        what = (tags["fl.kind"], tags["fl.config"], tags["fl.seed"], tags.get("fl.stopped", ""))
        ended[Finished(what, models[0], tuple(rows))] += 1
    return ended


def words_for(command: str, config: Path, folder: Path) -> list[str]:
    """What a user would type next; a run that was begun is resumed by its id, everything else is given again."""
    if command == "reproduce":
        return ["reproduce", str(config), "--jobs", "1"]
    if command in ("sweep", "matrix"):
        return [command, str(config)]
    if (folder / "mlflow.db").is_file():
        begun = query(
            folder,
            "SELECT run_uuid FROM runs WHERE status != 'FINISHED' AND run_uuid NOT IN "
            "(SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId') AND lifecycle_stage = 'active'",
        )
        if begun:
            return ["run", "--resume", begun[0][0]]
        left = [path.name for path in (folder / "state").glob("*")]
        if left:  # killed when it had come to its end, before it had tidied up
            return ["run", "--resume", left[0]]
        if query(folder, "SELECT 1 FROM runs WHERE status = 'FINISHED'"):
            return []
    return ["run", str(config)]


def completed(command: str, config: Path, folder: Path) -> None:
    """Give the command again until there is nothing left to do; a run that had not begun is told, and begun anew."""
    words = words_for(command, config, folder)
    for _ in range(3):
        if not words:
            return
        process = Fork(words, folder)
        code = process.wait()
        told = process.log.read_text()
        if code == 2 and "had not begun" in told:
            words = ["run", str(config)]
            continue
        assert code == 0, f"{words}: {told}"
        assert "Traceback" not in told
        if words[0] != "run" or words[1] == "--resume":
            return
        words = words_for(command, config, folder)
    assert not words, f"{words} is still to be done"


def shares(command: str) -> list[float]:
    """At which share of its course a command is killed: once in its first tenth, then anywhere, each in a part of its own."""
    coins = random.Random(command)
    return [coins.uniform(0, 0.1)] + [(part + coins.random()) / (KILLS - 1) for part in range(KILLS - 1)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_at_any_moment_change_no_figure(command: str, tmp_path: Path, empty_database: Path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(COMMANDS[command]))
    fresh = tmp_path / "whole"
    began = time.monotonic()
    process = Fork(words_for(command, config, fresh), fresh)  # on a fresh folder: the tables are made, too
    assert process.wait() == 0, process.log.read_text()
    seconds = [time.monotonic() - began] * 2  # on a fresh folder, and on one with a store
    whole = finished(fresh)
    killed = 0
    for number, share in enumerate(shares(command)):
        folder, kind = tmp_path / f"killed{number}", number % 2
        if kind:  # half of them while a store is there already
            folder.mkdir()
            shutil.copy(empty_database, folder)
        moment = share * seconds[kind]
        if Fork(words_for(command, config, folder), folder).kill_after(moment):
            killed += 1
        else:  # it takes no longer than that
            seconds[kind] = moment
        completed(command, config, folder)
        now = finished(folder)
        assert now == whole, f"killed after {moment:.2f} of {seconds[kind]:.2f} s: {whole - now} became {now - whole}"
        running = query(folder, "SELECT run_uuid FROM runs WHERE status = 'RUNNING'")
        assert not running, f"killed after {moment:.2f} of {seconds[kind]:.2f} s"
        assert not list((folder / "state").glob("*"))
        shutil.rmtree(folder)
    assert killed >= KILLS // 2, f"{killed} of {KILLS} were at work when they were killed"
