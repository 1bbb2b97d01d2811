"""The command `fl-lightning ui`: MLflow in the browser, and Optuna's dashboard beside it."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path

from fl_lightning import tracking
from fl_lightning.config import Tracking
from fl_lightning.errors import ConfigError, excerpt, masked
from fl_lightning.parallel import interruptible, tied
from fl_lightning.paths import embedded, runs_folder
from fl_lightning.search import studies_url
from fl_lightning.tracking import database_of, file_of

LOCAL = ("127.0.0.1", "localhost", "::1")


def ui(host: str, port: int) -> int:
    """Serve the runs until Ctrl-C; returns the exit code.

    Addresses of databases go to the servers by the environment: what stands in their arguments every user of the machine can
    read, passwords, too.

    Raises:
        ConfigError: nothing can listen there.
    """
    _check_place(host, port)
    uri = tracking.opened_uri()
    if uri.startswith("http"):
        print(f"MLflow runs at {_first_page(masked(uri).rstrip('/'))}", flush=True)
        with interruptible(), ExitStack() as servers:
            dashboard = _dashboard(host, port, servers)
            return dashboard.wait() if dashboard else 0
    print(f"MLflow UI on {_first_page(f'http://{host}:{port}')}  (Ctrl-C ends it)", flush=True)
    place = ["--host", host, "--port", str(port)]
    if embedded(uri):
        place += ["--default-artifact-root", (runs_folder() / "artifacts").as_uri()]
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": uri}  # nothing is scored online
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", *place]
    with interruptible(), ExitStack() as servers:  # both end with this process, however it ends
        _dashboard(host, port + 1, servers)
        server = servers.enter_context(tied(command, env=os.environ | own))
        return _until_end(server, database_of(uri)) if embedded(uri) else server.wait()


def _until_end(server: "subprocess.Popen[bytes]", database: Path) -> int:
    """Wait for the end of a server, and say it when the database that it shows is not the one that lies there any more."""
    shown, told = file_of(database), False
    while True:
        with suppress(subprocess.TimeoutExpired):
            return server.wait(timeout=2)
        if not told and file_of(database) != shown:
            told = True
            print(f"warning: {database} was deleted or replaced: end this with Ctrl-C and begin again", file=sys.stderr)


def _first_page(address: str) -> str:
    """Where the runs are: MLflow's own first page is one for generative models, without any."""
    with suppress(Exception):  # whatever is wrong with the store, its pages say it better
        store = tracking.client(only_read=True)
        known = [one for one in store.search_experiments(max_results=50) if one.name != "Default"]
        named = [one for one in known if one.name == Tracking().experiment] or known
        if named:
            return tracking.overview_link(named[0], address)
    return f"{address}/#/experiments?workflowType=machine_learning"


def _check_place(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, ValueError, TypeError) as error:
            why = getattr(error, "strerror", None) or "no name of a machine"
            other = port + 1 if port < 65535 else 5000
            raise ConfigError(f"cannot listen on {excerpt(host)}, port {port} ({why}); try --port {other}") from None
    if host not in LOCAL:
        print(
            f"warning: whoever reaches {host}:{port} can read, change and delete all runs, MLflow asks for no password; "
            "on a shared machine use 127.0.0.1 and an SSH tunnel",
            file=sys.stderr,
        )


def _dashboard(host: str, port: int, servers: ExitStack) -> "subprocess.Popen[bytes] | None":
    """Optuna's dashboard beside MLflow, where it is installed and there is a study to look at."""
    studies = studies_url()
    if embedded(studies) and not os.path.isfile(studies.removeprefix("sqlite:///")):
        return None
    if find_spec("optuna_dashboard") is None:
        print("for Optuna's dashboard of the searches, too: pip install 'fl-lightning[dashboard]'", flush=True)
        return None
    print(f"Optuna dashboard on http://{host}:{port}", flush=True)
    program = (
        "import os, sys; sys.argv.insert(1, os.environ.pop('FL_LIGHTNING_STUDIES')); "
        "from optuna_dashboard._cli import main; main()"
    )
    place = ["--host", host, "--port", str(port)]
    own = os.environ | {"FL_LIGHTNING_STUDIES": studies}
    return servers.enter_context(tied([sys.executable, "-c", program, *place], stdout=subprocess.DEVNULL, env=own))
