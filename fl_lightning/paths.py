"""Where things lie on disk."""

import os
import sys
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
"""The shipped configurations; one folder a slot."""


def config_folders() -> tuple[Path, ...]:
    """Where configurations are looked for: `FL_LIGHTNING_CONFIGS`, by default `./configs`, then the shipped ones."""
    user = Path(os.environ.get("FL_LIGHTNING_CONFIGS", "configs")).expanduser().resolve()
    return (user, CONFIGS) if user.is_dir() and user != CONFIGS.resolve() else (CONFIGS,)


def find_config(kind: str, name: str) -> Path | None:
    """`<kind>/<name>.yaml` in the first folder that has it; none for what is a path, not a name."""
    if Path(name).name != name:
        return None
    paths = (folder / kind / f"{name}.yaml" for folder in config_folders())
    return next((path for path in paths if is_file(path)), None)


def is_file(path: Path) -> bool:
    """Whether a file is there; a name too long, or with a NUL in it, is that of no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def readable(name: str) -> bool:
    """Whether the locale could read a name: Python shows bytes that it could not as halves of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def config_names(kind: str) -> list[str]:
    """Names of the configurations of a kind, the user's and the shipped ones, sorted."""
    return sorted({path.stem for folder in config_folders() for path in (folder / kind).glob("*.yaml")})


def data_folder() -> Path:
    """Folder for data sets: `FL_LIGHTNING_DATA`, by default `~/.cache/fl_lightning`."""
    return Path(os.environ.get("FL_LIGHTNING_DATA", "~/.cache/fl_lightning")).expanduser()


def runs_folder() -> Path:
    """Folder of the databases, artifacts and checkpoints: `FL_LIGHTNING_RUNS`, by default `./mlruns`."""
    return Path(os.environ.get("FL_LIGHTNING_RUNS", "mlruns")).expanduser().resolve()


def results_folder() -> Path:
    """Folder of the records that published verdicts rest on: `FL_LIGHTNING_RESULTS`, by default `./results`."""
    return Path(os.environ.get("FL_LIGHTNING_RESULTS", "results")).expanduser().resolve()


def embedded(address: str) -> bool:
    """Whether the address of a database names a file of this machine, not a server.

    Example:
        >>> [embedded(address) for address in ("sqlite:////tmp/mlruns/mlflow.db", "postgresql://me@there/studies")]
        [True, False]
    """
    return address.startswith("sqlite:")


SERVER = "MLFLOW_TRACKING_URI"
_AT_START = os.environ.get(SERVER) if "mlflow" not in sys.modules else None


def tracking_server() -> str | None:
    """The tracking server that the user has named by `MLFLOW_TRACKING_URI`; None: the embedded store.

    `mlflow.set_tracking_uri` writes its argument into the same variable, for processes that it may start. What a notebook does
    with MLflow besides decides nothing here: else states and searches would lie in one place, and their figures in another.
    """
    uri = os.environ.get(SERVER) or None
    # Private: the public `mlflow.get_tracking_uri` imports MLflow, and does not tell who named the server
    service = sys.modules.get("mlflow.tracking._tracking_service.utils")
    if uri and service and uri == getattr(service, "_tracking_uri", None) and uri not in _named_by_user():
        return None
    return uri


def _named_by_user() -> tuple[str | None, ...]:
    """What the variable was when this process began, and when this package was imported."""
    try:
        words = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        words = []
    first = next(
        (word.decode(errors="replace").partition("=")[2] for word in words if word.startswith(SERVER.encode())), None
    )
    return first, _AT_START
