"""Locks on files: one holder, many holders, and holders that were killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from fl_lightning.errors import ConfigError
from fl_lightning.parallel import exclusive, in_turn, shared

HOLDER = """
import sys
from filelock import FileLock, ReadWriteLock
with FileLock(sys.argv[1]), ReadWriteLock(sys.argv[2]).read_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_locks_of_this_process_and_of_others_that_are_killed(tmp_path: Path):
    alone, together = tmp_path / "folder" / "alone.lock", tmp_path / "together.lock"
    cleaned: list[str] = []
    with exclusive(alone, "busy"), pytest.raises(ConfigError, match="busy"), exclusive(alone, "busy"):
        pass
    with shared(together, lambda: cleaned.append("first")):
        assert cleaned == ["first"]
    command = [sys.executable, "-c", HOLDER, str(alone), str(together)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="busy"), exclusive(alone, "busy"):
            pass
        with shared(together, lambda: cleaned.append("beside another")):
            pass
        assert cleaned == ["first"]
        holder.kill()
    with in_turn(alone):  # a killed process holds nothing
        pass
    with shared(together, lambda: cleaned.append("alone again")):
        pass
    assert cleaned == ["first", "alone again"]
