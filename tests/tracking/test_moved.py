"""A whole runs folder that was moved: everything works where it lies now, and nothing is written anywhere else."""

import shutil
from pathlib import Path
from typing import Any

import mlflow.pytorch
import optuna
import pytest
import torch

from fl_lightning import runs, tracking
from fl_lightning.cli import main
from fl_lightning.federation import Federation
from fl_lightning.search import studies_url, sweep
from fl_lightning.tracking import _embedded as embedded
from fl_lightning.tracking import find
from fl_lightning.tracking._store import as_current

NAME = "digits-mlp-gaussian-vs-mean"


class Stop:
    def start(self, federation: Federation) -> None:
        pass

    def round(self, federation: Federation, report: Any) -> None:
        raise KeyboardInterrupt


def test_a_moved_folder_is_complete(
    tiny: Any, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    attacked: dict[str, Any] = {"attack": "gaussian", "rounds": 2}
    search = {"trials": 1, "confirm_seeds": [7], "space": {"attack.std": [1.0, 2.0]}}
    searched = sweep(tiny(**attacked, sweep=search, tracking={}), "tiny")
    with pytest.raises(KeyboardInterrupt):
        runs.run(tiny(**attacked), "tiny", lambda _: [Stop()])
    (interrupted,) = [folder.name for folder in (store_folder / "state").iterdir()]
    before = find(NAME).network.state_dict()

    moved = tmp_path / "somewhere else"
    store_folder.rename(moved)
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(moved))
    monkeypatch.chdir(tmp_path)
    assert main(["models", "list"]) == 0
    assert main(["models", "show", NAME]) == 0
    assert "2 of 5 clients" not in capsys.readouterr().out
    assert main(["models", "export", NAME, str(tmp_path / "exported")]) == 0
    assert all(torch.equal(part, before[name]) for name, part in find(NAME).network.state_dict().items())
    with as_current(tracking.tracking_uri()):
        mlflow.pytorch.load_model(f"models:/{NAME}@strongest")
    assert runs.resume(interrupted).rounds == 2
    again = sweep(tiny(**attacked, sweep=search), "tiny")
    assert (again.run_id, again.study) == (searched.run_id, searched.study)
    assert len(optuna.load_study(study_name=again.study, storage=studies_url()).trials) == 1
    new = runs.run(tiny(**attacked, seed=5), "tiny")
    assert (moved / "artifacts" / new.run_id).is_dir()
    assert not sorted(store_folder.rglob("*"))
    assert not store_folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"somewhere else", "exported"}


def test_a_folder_that_cannot_be_written_can_be_looked_at(
    tiny: Any, store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runs.run(tiny(attack="gaussian", rounds=1, tracking={"register": "always"}), "tiny")
    moved = tmp_path / "mounted"
    shutil.move(store_folder, moved)
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(moved))
    monkeypatch.setattr(embedded, "unwritable", lambda database: f"cannot write to {database.parent}")
    monkeypatch.setattr(tracking._store, "unwritable", embedded.unwritable)
    content = {path: path.stat().st_mtime_ns for path in sorted(moved.rglob("*"))}
    assert main(["models", "list"]) == 0
    assert main(["models", "show", NAME]) == 0
    assert tracking.opened_uri() != tracking.tracking_uri()
    assert main(["run", "digits", "--fast"]) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in sorted(moved.rglob("*"))} == content
