"""A run that version 0.1.0 began, and that was killed in its last round: its folder was moved, and it goes on here."""

import json
import tarfile
from pathlib import Path

import mlflow
import pytest
from packaging.version import Version

from fl_lightning import runs, tracking

HERE = Path(__file__).parent / "old"


@pytest.mark.skipif(
    Version(mlflow.__version__) < Version("3.17"), reason="MLflow 3.17 wrote it, older ones cannot read it"
)
def test_a_killed_run_of_the_old_version_comes_to_the_figures_that_it_had_there(runs_folder: Path):
    with tarfile.open(HERE / "killed.tar.xz") as archive:
        archive.extractall(runs_folder, filter="data")
    (folder,) = (runs_folder / "state").iterdir()
    outcome = runs.resume(folder.name)
    assert (outcome.rounds, outcome.experiment) == (3, "old")
    whole = json.loads((HERE / "whole.json").read_text())
    for name, value in whole["metrics"].items():
        if not name.startswith("time/"):
            assert outcome.metrics[name] == pytest.approx(value, rel=1e-5), name
    store = tracking.client()
    assert store.get_run(folder.name).info.status == "FINISHED"
    for name in ("global/accuracy", "attack/success"):
        assert sorted(tracking.history(store, folder.name, name)) == [0, 1, 2]
    assert runs.resume(whole["run_id"]).metrics["global/accuracy"] == whole["metrics"]["global/accuracy"]
