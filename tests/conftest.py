"""What all tests share: a runs folder of their own, one thread, and a tiny experiment to change."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_lightning.config import Experiment, load

TINY: dict[str, Any] = {
    "data": {"name": "digits", "train_samples": 200, "test_samples": 100},
    "rounds": 3,
    "partition": {"name": "iid", "clients": 5},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.2}},
    "participation": {"name": "full", "malicious": 1},
    "tracking": {"register": "never", "models": False},  # a model and its pictures take longer than all the rest
}

NOISE: dict[str, Any] = {
    "loud": {"attack": {"name": "gaussian", "std": 10.0}},
    "quiet": {"attack": {"name": "gaussian", "std": 1e-9}},
}
"""Rows of a paper's table whose order nobody doubts."""


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test ever writes into the user's runs, or talks to the user's tracking server."""
    folder = tmp_path / "mlruns"
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(folder))
    monkeypatch.setenv("FL_LIGHTNING_RESULTS", str(tmp_path / "results"))
    for elsewhere in ("MLFLOW_TRACKING_URI", "FL_LIGHTNING_STUDIES", "RAY_ADDRESS"):
        monkeypatch.delenv(elsewhere, raising=False)
    return folder


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty data folder; the slow tests use the real one."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("FL_LIGHTNING_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database: making one takes seconds, copying it nothing."""
    from fl_lightning import tracking

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_LIGHTNING_RUNS", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.client().search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def store_folder(runs_folder: Path, empty_database: Path) -> Path:
    """A runs folder with an empty MLflow store in it."""
    runs_folder.mkdir()
    shutil.copy(empty_database, runs_folder / "mlflow.db")
    return runs_folder


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Experiment]:
    """Five clients on 200 digits, one of them malicious; slots are replaced by keyword: `tiny(rounds=2)`."""

    def build(**slots: Any) -> Experiment:
        return load(TINY | slots)

    return build


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """The module `ray`; a cluster that a test has made for itself on this machine ends with the tests."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'fl-lightning[ray]'")
    yield ray
    ray.shutdown()
