"""Programs that are tied to a process: they end with it, with all that they have started, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import wait_until

PROGRAM = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("endings", sys.argv[2])
endings = module_from_spec(spec)
spec.loader.exec_module(endings)
child = "import subprocess, sys; subprocess.run(['sleep', '600'])"
with endings.tied([sys.executable, "-c", child]) as program:
    print(program.pid, flush=True)
    if sys.argv[3] == "leave":
        sys.stdin.readline()
    else:
        program.wait()
"""
ROOT = Path(__file__).parents[2]


def group(leader: int) -> list[int]:
    """Processes of a group that are no zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(pgrp) == leader and state != "Z":
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("how", ["leave", "kill"])
def test_a_tied_program_ends_with_its_process(tmp_path: Path, how: str):
    path = ROOT / "fl_lightning" / "parallel" / "_endings.py"
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdin
        assert process.stdout
        leader = int(process.stdout.readline())
        wait_until(lambda: len(group(leader)) == 3, 60, "watcher, program and its child")
        if how == "leave":
            process.stdin.write("\n")
            process.stdin.flush()
        else:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        wait_until(lambda: not group(leader), 60, "the end of all of them")
