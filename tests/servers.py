"""Real servers for slow tests: PostgreSQL and MLflow on free ports of this machine, ended with the test."""

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


@contextmanager
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server with an empty database; skips where there is none to start."""
    pytest.importorskip("psycopg2", reason="needs psycopg2: pip install 'fl-lightning[postgres]'")
    found = shutil.which("postgres") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))[::-1]), None)
    if found is None:
        pytest.skip("needs a PostgreSQL server: apt install postgresql")
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = next((one.pw_name for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody")), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder, port = Path(tempfile.mkdtemp(prefix="fl-postgres-")), free_port()
    if user:
        shutil.chown(folder, user)
    binaries, data = Path(found).parent, folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    make = [binaries / "initdb", "-D", data, "-U", "fl", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(make, user=user, check=True, **quiet)  # type: ignore[call-overload]
    serve = [found, "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
    server = subprocess.Popen(serve, user=user, **quiet)  # type: ignore[call-overload]
    try:
        wait_until(lambda: _answers(port) or server.poll() is not None, 60, "PostgreSQL")
        assert server.poll() is None, "PostgreSQL did not start"
        yield f"postgresql+psycopg2://fl@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait()
        shutil.rmtree(folder)


def _answers(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="fl", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


class MlflowServer:
    """An MLflow server that can be killed and started again; its artifacts go through the server."""

    def __init__(self, folder: Path, database: str):
        self.port, self.database, self.folder = free_port(), database, folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        place = ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "served")]
        listen = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *place, *listen],
            env=quiet,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )
        wait_until(self.answers, 180, "MLflow")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """End it, and its workers, without a chance to say goodbye."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
