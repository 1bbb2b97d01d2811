"""What MLflow's pages show: descriptions, names, addresses, data sets, and what is read back from where."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_lightning import runs, tracking
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.runs import open as opened
from fl_lightning.tracking._pages import KIND, NOTE, below_link, comparison_link, described, note, run_link
from fl_lightning.tracking._tracker import registers

pytestmark = pytest.mark.usefixtures("store_folder")
ATTACKED: dict[str, Any] = {"attack": "sign_flip", "defenses": {"clip": {"name": "norm_bound", "max_norm": 1.0}}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path):
    """One small attacked run that all tests of this file look at."""
    import shutil

    from conftest import TINY

    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_LIGHTNING_RUNS", str(folder))
        patch.setattr(sys, "argv", ["/usr/bin/fl-lightning", "run", "tiny", "rounds=1", "x=http://me:pw@host"])
        experiment = load(TINY | ATTACKED | {"rounds": 1, "tracking": {"models": False}})
        yield folder, experiment, runs.run(experiment, "tiny")


@pytest.fixture
def kept(store, monkeypatch: pytest.MonkeyPatch):
    folder, experiment, outcome = store
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(folder))
    return experiment, outcome, tracking.client()


def test_a_description_begins_with_what_came_out(kept):
    experiment, outcome, store = kept
    run = store.get_run(outcome.run_id)
    first, sentence, made, command, *rest = run.data.tags[NOTE].split("\n\n")
    figures = outcome.metrics
    assert (
        first == f"Attack success **{figures['attack/success']:.4f}**, accuracy **{figures['global/accuracy']:.4f}**."
    )
    assert sentence == (
        "1 of 5 clients attack with `sign_flip` (objective `untargeted`): `mlp` on `digits`, 5 clients, 1 rounds, seed 0; "
        "aggregator `mean` behind `clip`."
    )
    assert (made, command) == ("Made by:", "    fl-lightning run tiny rounds=1 x=http://me:***@host")
    assert rest[-1].startswith("```yaml\n")
    assert len(note(described(experiment), experiment, "x" * 10_000)) < 8000
    page = store.get_experiment(run.info.experiment_id)
    assert page.tags[KIND] == "custom_model_development"
    assert "tags.fl.kind" in page.tags[NOTE]


def test_nothing_is_read_back_from_what_a_person_may_write(kept):
    _, outcome, store = kept
    before, kept_note = opened(outcome.run_id).bibtex(), store.get_run(outcome.run_id).data.tags[NOTE]
    store.set_tag(outcome.run_id, NOTE, "my own words")
    tracking.describe(store, outcome.run_id, kept[0], "never shown")
    assert store.get_run(outcome.run_id).data.tags[NOTE] == "my own words"
    assert opened(outcome.run_id).bibtex() == before != ""
    store.set_tag(outcome.run_id, NOTE, kept_note)


def test_charts_begin_with_what_matters_and_figures_stay_what_they_were(kept):
    _, outcome, store = kept
    logged = store.get_run(outcome.run_id).data.metrics
    assert {name for name in logged if "/" not in name} == {"success", "accuracy"}
    assert logged["success"] == logged["attack/success"] == outcome.metrics["attack/success"]
    assert runs.resume(outcome.run_id).metrics == outcome.metrics
    assert "success" not in set(opened(outcome.run_id).frame()["metric"])


def test_data_sets_are_inputs_with_their_checksum(kept, tiny):
    experiment, outcome, store = kept
    inputs = store.get_run(outcome.run_id).inputs.dataset_inputs
    named = {entry.tags[0].value: entry.dataset for entry in inputs}
    assert set(named) == {"training", "testing"}
    data = experiment.data.load()
    for context, samples in (("training", data.train), ("testing", data.test)):
        digest = tracking.checksum(samples)
        assert named[context].digest == digest[:36]
        assert json.loads(named[context].profile)["sha256"] == digest
        assert json.loads(named[context].profile)["num_rows"] == len(samples)
    assert tracking.checksum(data.train) != tracking.checksum(data.test)
    found = store.search_runs([store.get_run(outcome.run_id).info.experiment_id], f"dataset.digest = '{digest[:36]}'")
    assert [run.info.run_id for run in found] == [outcome.run_id]


def test_addresses_open_the_pages_for_models_that_are_trained(kept, monkeypatch: pytest.MonkeyPatch):
    _, outcome, store = kept
    run = store.get_run(outcome.run_id)
    place, name = run.info.experiment_id, outcome.run_id
    assert run_link(run) == f"http://127.0.0.1:5000/#/experiments/{place}/runs/{name}?workflowType=machine_learning"
    assert run_link(run, "").startswith("#/experiments/")
    assert f"&searchFilter=tags.%60mlflow.parentRunId%60%20%3D%20%27{name}%27&orderByKey" in below_link(run, "")
    assert comparison_link([name, name], place, "").startswith(
        f"#/compare-runs?runs=%5B%22{name}%22%2C%22{name}%22%5D&experiments="
    )
    assert tracking.look_closer(name) == f"look closer: fl-lightning ui, then {run_link(run)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000/")
    assert run_link(run).startswith("http://me:***@host:5000/#/experiments/")


def test_the_load_of_the_machine_needs_psutil(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fl_lightning.tracking._system.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking.system: needs psutil: pip install 'fl-lightning\[system\]'"):
        runs.run(tiny(rounds=1, tracking={"system": True, "models": False}))


def test_the_load_of_the_machine_is_kept(tiny, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("psutil", reason="needs psutil: pip install 'fl-lightning[system]'")
    monkeypatch.setattr("fl_lightning.tracking._system.SECONDS", 0.01)
    outcome = runs.run(tiny(rounds=20, tracking={"system": True, "models": False, "checkpoint_every": 20}))
    logged = tracking.client().get_run(outcome.run_id).data.metrics
    assert 0 < logged["system/system_memory_usage_percentage"] <= 100
    assert not any(name.startswith("system/") for name in runs.resume(outcome.run_id).metrics)


@pytest.mark.parametrize(
    ("wish", "kind", "fast", "registered"),
    [
        ("auto", "run", False, True),
        ("auto", "cell", False, False),
        ("auto", "run", True, False),
        ("best", "cell", False, True),
        ("never", "run", False, False),
    ],
)
def test_who_may_register(wish: str, kind: str, fast: bool, registered: bool, tiny):
    assert registers(tiny(attack="sign_flip", tracking={"register": wish}, fast=fast), kind) == registered
    assert not registers(tiny(tracking={"register": wish}, fast=fast), kind)
