"""What the runs take on disk, and what of it can go.

Nothing that is registered goes, no search's best trial, and nothing outside of the folder of the runs. Figures stay: only models,
states and what was deleted in MLflow before are removed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.exceptions import MlflowException

from fl_lightning import tracking
from fl_lightning.errors import ConfigError
from fl_lightning.parallel import exclusive
from fl_lightning.paths import embedded, runs_folder

__all__ = ["Kind", "kinds", "size_of"]


@dataclass(frozen=True)
class Kind:
    """A kind of thing that can go.

    Attributes:
        what: it, in words.
        folders: where it lies.
        remove: removes it.
    """

    what: str
    folders: list[Path]
    remove: Callable[[], None]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(map(size_of, self.folders))


def kinds() -> dict[str, Kind]:
    """Everything that can go, by name."""
    store = tracking.client()
    runs = _runs(store, ViewType.ALL)
    models = list(_models(store, runs))
    states = _dead_states(runs)
    deleted = [run for run in runs if run.info.lifecycle_stage == "deleted" and _mine(run.info.artifact_uri)]
    warmups = sorted((runs_folder() / "warmup").glob("*"))
    return {
        "trials": Kind(
            "models of trials that did not win; their figures stay",
            [path for _, path in models],
            lambda: _remove_models(store, models),
        ),
        "checkpoints": Kind("states of runs that are finished, deleted or gone", states, lambda: _remove(states)),
        "deleted": Kind(
            "runs that were deleted in MLflow, with their figures",
            [path for run in deleted if (path := _mine(run.info.artifact_uri)) is not None],
            lambda: _remove_runs([run.info.run_id for run in deleted]),
        ),
        "warmups": Kind(
            "clean rounds that trials share; made again if need be", warmups, lambda: _remove_warmups(warmups)
        ),
    }


def _runs(store: MlflowClient, view: int) -> list[Run]:
    places = [place.experiment_id for place in store.search_experiments(view_type=ViewType.ALL)]
    return tracking.pages(store.search_runs, places, run_view_type=view) if places else []


def _models(store: MlflowClient, runs: list[Run]) -> Iterator[tuple[LoggedModel, Path]]:
    """Models of finished trials, but for registered ones and the best of each search."""
    trials = {run.info.run_id: run for run in runs if run.data.tags.get("fl.kind") == "trial"}
    kept = {version.run_id for version in tracking.registered_models()} | {_best(store, run) for run in runs}
    losers = {
        run_id
        for run_id, run in trials.items()
        if run_id not in kept and run.info.status != "RUNNING" and run.info.lifecycle_stage == "active"
    }
    places = sorted({run.info.experiment_id for run in trials.values()})
    for model in tracking.pages(store.search_logged_models, places) if places else []:
        path = _mine(model.artifact_location)
        if model.source_run_id in losers and path is not None and path.is_dir():
            yield model, path


def _best(store: MlflowClient, run: Run) -> str | None:
    """The run of a search's best trial, as the search has written it down."""
    if run.data.tags.get("fl.kind") != "study":
        return None
    with tempfile.TemporaryDirectory() as folder, suppress(MlflowException, OSError, ValueError, LookupError):
        file = Path(store.download_artifacts(run.info.run_id, "search.json", folder))
        told = json.loads(file.read_text(encoding="utf-8"))
        return str(told["trials"][0]["run_id"])
    return None


def _dead_states(runs: list[Run]) -> list[Path]:
    """Folders of runs that cannot, or need not, go on."""
    alive = {run.info.run_id for run in runs if run.info.lifecycle_stage == "active" and run.info.status != "FINISHED"}
    return [path for path in sorted((runs_folder() / "state").glob("*")) if path.is_dir() and path.name not in alive]


def _mine(uri: str) -> Path | None:
    """The folder that an address names, where it lies in the folder of the runs."""
    parts = urlsplit(uri)
    if parts.scheme not in ("file", ""):
        return None
    path = Path(unquote(parts.path)).resolve()
    return path if path.is_relative_to(runs_folder()) and path != runs_folder() else None


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        _check_inside(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _check_inside(folder: Path) -> None:
    """Raise a ConfigError for a folder that does not lie in that of the runs."""
    if not folder.resolve().is_relative_to(runs_folder()) or folder.resolve() == runs_folder():
        raise ConfigError(f"{folder} does not lie in {runs_folder()}: it stays")


def _remove_models(store: MlflowClient, models: list[tuple[LoggedModel, Path]]) -> None:
    for model, path in models:
        store.delete_logged_model(model.model_id)
        _remove([path])


def _remove_warmups(folders: list[Path]) -> None:
    """Those of searches that nobody works on."""
    for folder in folders:
        with exclusive(runs_folder() / f"{folder.name}.lock", f"search {folder.name} is at work: its rounds stay"):
            _remove([folder])


def _remove_runs(run_ids: list[str]) -> None:
    """MLflow's own way to forget runs for good."""
    uri = tracking.opened_uri()
    if not embedded(uri):
        raise ConfigError("runs of a tracking server are forgotten there: mlflow gc")
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--run-ids", ",".join(run_ids)]
    done = subprocess.run(command, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"mlflow gc failed: {(done.stderr.splitlines() or ['no message'])[-1]}")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    if path.is_file():
        total += path.stat().st_size
    return total
