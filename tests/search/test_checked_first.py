"""What a search, a matrix or a run could fail at in the end is tried before it begins; no state of a search is executed."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

from fl_lightning import runs, tracking
from fl_lightning._matrix import Matrix, run_matrix
from fl_lightning.attacks import Choice, Tunable, as_span
from fl_lightning.cli import main
from fl_lightning.config import Experiment, dump, load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.runs import _checkpoint as checkpoints
from fl_lightning.search import sweep
from fl_lightning.search._cmaes import CmaEs, restored


@pytest.mark.parametrize(
    ("given", "span"),
    [
        ({"low": 1, "high": 2}, Tunable(1, 2)),
        ({"low": 1e-4, "high": 10, "log": True}, Tunable(1e-4, 10, log=True)),
        ([1, 2.5, "krum", True], Choice((1, 2.5, "krum", True))),
        ({"choice": ["a"]}, Choice(("a",))),
    ],
)
def test_ranges(given: Any, span: Any):
    assert as_span(given) == span


@pytest.mark.parametrize(
    "given",
    [
        *({}, [], {"choice": []}, {"low": 1}, {"low": 2, "high": 1}, {"low": 1, "high": 1}, {"low": "a", "high": 2}, 5),
        *({"low": 0, "high": 1, "log": True}, {"low": True, "high": 2}, {"low": 1, "high": 2, "step": 1}, None, "krum"),
        *({"low": 0.5, "high": 2, "integer": True}, {"low": 1, "high": 2, "log": "yes"}, {"low": 1, "high": 10**400}),
        *([[1], [2]], [None], [1, 1], {"low": float("-inf"), "high": 0.0}, {"low": 0, "high": float("nan")}),
    ],
)
def test_what_is_no_range_is_refused_when_the_configuration_is_read(given: Any):
    with pytest.raises(ConfigError, match=r"^sweep\.space\.attack\.std: "):
        load(TINY | {"attack": "gaussian", "sweep": {"space": {"attack.std": given}}})


def small(**changes: Any) -> Matrix:
    parts: dict[str, Any] = {
        "base": TINY | {"rounds": 1},
        "attacks": {"noise": "gaussian"},
        "servers": {"mean": {"aggregator": "mean"}},
        "seeds": [0],
        "jobs": 1,
    }
    return Matrix(**parts | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "attack/sucess"}, "metric: no (run|round) reports 'attack/sucess'; did you mean 'attack/success'"),
        ({"servers": {"mean": {"participation.malicious": 0}}}, r"noise \| mean\.attack: nobody carries out gaussian"),
        (
            {"attacks": {"noise": {"name": "label_flip", "objective": {"name": "trigger", "label": 12}}}},
            r"noise \| mean",
        ),
    ],
)
def test_a_matrix_is_refused_before_its_first_run(store_folder: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        run_matrix(small(**changes), "small")
    store = tracking.client()
    assert not store.search_runs([one.experiment_id for one in store.search_experiments()])


def test_a_run_that_the_disk_has_no_room_for_does_not_begin(
    tiny: Callable[..., Experiment], store_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoints, "SPARE_BYTES", 2**62)
    with pytest.raises(
        ConfigError, match=r"tracking: needs .* MB for checkpoints and models, and where .* MB are free"
    ):
        runs.run(tiny(), "tiny")
    assert not (store_folder / "state").exists()


def test_room_is_what_is_kept(tiny: Callable[..., Experiment], store_folder: Path, monkeypatch: pytest.MonkeyPatch):
    class Disk:
        free = 0

    monkeypatch.setattr(checkpoints, "SPARE_BYTES", 0)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: Disk)
    few = tiny(tracking={"models": False})
    state = 2 * 4 * 2 * len(Federation(few).initial_D)  # two checkpoints of the last model and the one before it
    for experiment, models in (
        (few, 0),
        (tiny(tracking={"register": "never"}), 3),
        (tiny(tracking={"keep_rounds": [0, 99]}), 4),
    ):
        federation = Federation(experiment)
        Disk.free = state + models * 2 * 4 * len(federation.initial_D)
        checkpoints.check_room(federation)
        Disk.free -= 1
        with pytest.raises(ConfigError, match="needs"):
            checkpoints.check_room(federation)


class FullDisk:
    """An observer that finds no room in the second round, once."""

    def start(self, federation: Federation) -> None:
        pass

    def round(self, federation: Federation, report: RoundReport) -> None:
        if report.round == 1:
            raise OSError(28, "No space left on device")


def test_a_full_disk_is_named_and_the_run_goes_on_afterwards(
    tiny: Callable[..., Experiment],
    store_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    experiment = tiny(tracking={"models": False})
    whole = runs.run(experiment, "whole")
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(experiment))
    monkeypatch.setattr("fl_lightning.cli._main._watch", lambda options: lambda experiment: [FullDisk()])
    assert main(["run", str(path)]) == 1
    told = capsys.readouterr().err
    assert "no room is left where " in told
    assert told.startswith("error: ")
    (run_id,) = [folder.name for folder in (store_folder / "state").iterdir()]
    assert f"fl-lightning run --resume {run_id}" in told
    again = runs.resume(run_id)
    figures = [{k: v for k, v in one.metrics.items() if not k.startswith("time/")} for one in (whole, again)]
    assert figures[0] == figures[1]


def test_a_file_that_cannot_be_completed_leaves_the_old_one_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "checkpoint.pt"
    runs.write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runs.write_atomically(path, b"new")
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("open('executed', 'w').close()",)


def test_a_state_of_cma_es_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for hostile in (pickle.dumps(Bomb()), pickle.dumps(torch.nn.Linear(1, 1)), b"\x80", b""):
        assert restored(hostile.hex()) is None
    assert restored("zz") is None
    state = {"mean": np.arange(3.0), "random": np.random.RandomState(1), "one": np.float64(2.0)}
    again = restored(pickle.dumps(state).hex())
    assert np.array_equal(again["mean"], state["mean"])
    assert again["random"].random() == np.random.RandomState(1).random()
    trial = type("Trial", (), {"system_attrs": {"cma:optimizer:0": pickle.dumps(Bomb()).hex()}})
    assert CmaEs(seed=0)._restore_optimizer([trial]) is None  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


def test_a_sampler_whose_package_is_missing_is_refused_first(tiny: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fl_lightning.search._cmaes.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"sweep\.sampler: cmaes needs a package that is not installed"):
        sweep(tiny(attack="gaussian", sweep={"sampler": "cmaes"}), "tiny")


@pytest.mark.parametrize("label", ["no attack", "", " ", "a | b", "x" * 101, "a\x00b"])
def test_labels_of_a_matrix_tell_cells_apart(label: str):
    for part in ("attacks", "servers"):
        with pytest.raises(ValueError, match="a label is a name of at most 100 characters"):
            small(**{part: {label: {}}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("client.callbacks={'a/b': fl_wbc}", "the label 'a/b'"),
        ("client.callbacks={'': fl_wbc}", "the label ''"),
        ("evaluation.metrics={'a/b': {name: torchmetrics, metric: Accuracy}}", "the label 'a/b'"),
        ("sweep.confirm_seeds=[7, 7]", "confirm_seeds must differ"),
        ("attack.inflate=1e300", r"attack\.inflate"),
    ],
)
def test_what_mlflow_or_a_round_would_refuse_is_refused_when_it_is_read(change: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load("digits", [change])


@pytest.mark.parametrize("metric", ["{metric: MeanSquaredError}", "{metric: F1Score, args: {average: none}}"])
def test_a_figure_that_does_not_fit_is_refused_before_a_round(metric: str):
    experiment = load(TINY, [f"evaluation.metrics={{a: {metric.replace('{', '{name: torchmetrics, ', 1)}}}"])
    with pytest.raises(ConfigError, match=r"evaluation\.metrics\.a: does not fit this model and data"):
        Federation(experiment)
