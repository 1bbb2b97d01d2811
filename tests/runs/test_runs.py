"""Tracked runs against a real MLflow store: what is kept, what a kill costs, what the registry gives back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow.pytorch
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file

from fl_lightning import runs, tracking
from fl_lightning.config import Experiment, dump, load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, RoundReport
from fl_lightning.runs import run_folder
from fl_lightning.tracking import registered_models
from fl_lightning.tracking._store import as_current

pytestmark = pytest.mark.usefixtures("store_folder")
ATTACKED: dict[str, Any] = {"attack": "gaussian", "participation": {"name": "full", "malicious": 2}}


class Stop:
    """An observer that ends a run in the middle."""

    def __init__(self, after: int, error: BaseException):
        self.after, self.error = after, error

    def start(self, federation: Federation) -> None:
        pass

    def round(self, federation: Federation, report: RoundReport) -> None:
        if report.round == self.after:
            raise self.error


def figures(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    found = tracking.client().get_metric_history(run_id, metric)
    return sorted((one.step, one.value) for one in found)


def test_a_run_leaves_everything_in_mlflow(tiny):
    experiment = tiny(**ATTACKED, evaluation={"twin": True}, tracking={"register": "never"})
    outcome = runs.run(experiment, "tiny")
    store = tracking.client()
    run = store.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["fl.attack"] == "gaussian"
    assert run.data.params["client.optimizer.lr"] == "0.2"
    names = {
        "global/accuracy",
        "global/loss",
        "attack/success",
        "attack/selected",
        "impact/accuracy_drop",
        "stealth/cosine",
    }
    times = {f"time/{part}" for part in ("round", "train", "poison", "defend", "aggregate", "evaluate")}
    assert names | times <= set(outcome.metrics)
    for name in names:
        assert [step for step, _ in history(outcome.run_id, name)] == [0, 1, 2]
        assert run.data.metrics[name] == outcome.metrics[name]
    artifacts = {file.path for file in store.list_artifacts(outcome.run_id)}
    assert {"config.yaml", "environment.json", "partition.png", "curves.png", "weights"} <= artifacts
    kept = Path(store.download_artifacts(outcome.run_id, "config.yaml"))
    assert load(yaml.safe_load(kept.read_text())) == experiment
    assert not run_folder(outcome.run_id).exists()


def test_the_logged_model_is_the_global_model(tiny):
    """Bit-equal through MLflow's format and through safetensors, scored in plain torch against the logged accuracy."""
    experiment = tiny(**ATTACKED, tracking={"register": "never"})
    outcome = runs.run(experiment, "tiny")
    federation = Federation(experiment)
    final_D = federation.run().global_D
    expected = federation.bench.flat.load_(final_D).eval()
    test = federation.data.test
    with as_current(tracking.tracking_uri()):
        loaded = mlflow.pytorch.load_model(outcome.model_uri)
    with torch.inference_mode():
        assert torch.equal(loaded(test.x), expected(test.x))
        accuracy = float((loaded(test.x).argmax(1) == test.y).double().mean())
    assert accuracy == pytest.approx(outcome.metrics["global/accuracy"], abs=1e-6)
    weights = Path(tracking.client().download_artifacts(outcome.run_id, "weights")) / "final.safetensors"
    assert all(torch.equal(part, expected.state_dict()[name]) for name, part in load_file(weights).items())


def test_the_registry_knows_the_strongest(tiny):
    def run(**slots: Any) -> runs.Outcome:
        return runs.run(tiny(rounds=8, **ATTACKED | slots), "tiny")

    weak = run(attack={"name": "gaussian", "std": 0.001}, tracking={"register": "always"})
    strong = run(attack={"name": "gaussian", "std": 10.0}, tracking={"register": "always"})
    name = "digits-mlp-gaussian-vs-mean"
    assert (weak.registered_model, strong.registered_model) == (f"{name}/1", f"{name}/2")
    weaker = run(attack={"name": "gaussian", "std": 0.002}, tracking={"register": "best"})
    assert weaker.registered_model is None
    version = tracking.client().get_model_version_by_alias(name, "strongest")
    assert version.version in ("2", 2)
    assert float(version.tags["attack/success"]) == pytest.approx(strong.metrics["attack/success"], abs=1e-5)
    assert [v.run_id for v in registered_models()] == [strong.run_id, weak.run_id]
    assert registered_models(attack="cmp") == []
    with as_current(tracking.tracking_uri()):
        model = mlflow.pytorch.load_model(f"models:/{name}@strongest")
        again = mlflow.pytorch.load_model(strong.model_uri)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), again(x))


def test_a_run_that_was_interrupted_continues_to_the_same_figures(tiny):
    experiment = tiny(rounds=4, **ATTACKED)
    whole = runs.run(experiment, "tiny")
    with pytest.raises(KeyboardInterrupt):
        runs.run(experiment, "tiny", lambda _: [Stop(1, KeyboardInterrupt())])
    store = tracking.client()
    killed = store.search_runs([tracking.experiment_id(store, "fl_lightning")], "attributes.status = 'KILLED'")
    assert len(killed) == 1
    run_id = killed[0].info.run_id
    rest = runs.resume(run_id)
    assert (rest.run_id, rest.rounds) == (run_id, 4)
    assert figures(rest.metrics) == figures(whole.metrics)
    assert history(run_id, "global/loss") == history(whole.run_id, "global/loss")
    assert runs.resume(run_id).metrics == rest.metrics  # a finished run just tells its outcome


def test_a_run_that_failed_says_why(tiny):
    with pytest.raises(RuntimeError, match="out of luck"):
        runs.run(tiny(), "tiny", lambda _: [Stop(0, RuntimeError("out of luck"))])
    store = tracking.client()
    (run,) = store.search_runs([tracking.experiment_id(store, "fl_lightning")])
    assert run.info.status == "FAILED"
    assert run.data.tags["fl.stopped"] == "RuntimeError: out of luck"


PROGRAM = """
import sys, time, yaml
import torch
torch.set_num_threads(1)
from fl_lightning import runs
from fl_lightning.config import load

class Slow:
    def start(self, federation): pass
    def round(self, federation, report):
        print(report.round, flush=True)
        time.sleep(0.15)

runs.run(load(yaml.safe_load(open(sys.argv[1]))), "tiny", lambda _: [Slow()])
"""


def test_kill_9_loses_nothing(tiny, store_folder: Path, tmp_path: Path):
    experiment = tiny(rounds=5, **ATTACKED)
    config = tmp_path / "config.yaml"
    config.write_text(dump(experiment))
    command = [sys.executable, "-c", PROGRAM, str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout
        while int(process.stdout.readline()) < 1:
            pass
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    (run_id,) = [folder.name for folder in (store_folder / "state").iterdir()]
    rest = runs.resume(run_id)
    whole = runs.run(experiment, "tiny")
    assert figures(rest.metrics) == figures(whole.metrics)
    for metric in ("global/accuracy", "attack/success", "stealth/l2_max"):
        assert history(run_id, metric) == history(whole.run_id, metric)
    assert tracking.client().get_run(run_id).info.status == "FINISHED"


def test_several_seeds_have_a_parent_with_mean_and_interval(tiny):
    outcome = runs.run(tiny(seeds=[3, 4], **ATTACKED, evaluation={"twin": True}), "tiny")
    assert [one.metrics["global/accuracy"] for one in outcome.seeds] == [
        runs.run(tiny(seed=seed, **ATTACKED), "tiny").metrics["global/accuracy"] for seed in (3, 4)
    ]
    assert outcome.metrics["global/accuracy"] == pytest.approx(
        sum(one.metrics["global/accuracy"] for one in outcome.seeds) / 2
    )
    store = tracking.client()
    assert set(tracking.children(store, outcome.run_id)) == {3, 4}
    table = Path(store.download_artifacts(outcome.run_id, "summary.md")).read_text()
    assert "| impact/accuracy_drop |" in table
    assert "±" not in table, "two seeds tell too little for an interval"


def test_seeds_that_were_interrupted_do_not_run_twice(tiny):
    experiment = tiny(seeds=[3, 4, 5], **ATTACKED)

    def watch(one: Experiment) -> list[Stop]:
        return [Stop(1, KeyboardInterrupt())] if one.seed == 4 else []

    with pytest.raises(KeyboardInterrupt):
        runs.run(experiment, "tiny", watch)
    store = tracking.client()
    everything = store.search_runs([tracking.experiment_id(store, "fl_lightning")])
    (parent,) = [run for run in everything if run.data.tags["fl.kind"] == "seeds"]
    outcome = runs.resume(parent.info.run_id)
    assert [one.rounds for one in outcome.seeds] == [3, 3, 3]
    assert set(tracking.children(store, parent.info.run_id)) == {3, 4, 5}
    assert "±" in Path(store.download_artifacts(parent.info.run_id, "summary.md")).read_text()
    assert len(store.search_runs([parent.info.experiment_id])) == 4


def test_an_unknown_run_and_a_run_elsewhere(tiny):
    with pytest.raises(ConfigError, match="no run 'nonsense'"):
        runs.resume("nonsense")
    store = tracking.client()
    run_id = tracking.create_run(store, tiny(), "elsewhere", "run")
    store.log_metric(run_id, "global/accuracy", 0.5)
    with pytest.raises(ConfigError, match="resume it on the machine"):
        runs.resume(run_id)
    early = tracking.create_run(store, tiny(), "early", "seeds")
    for _ in range(2):
        with pytest.raises(ConfigError, match="had not begun when its process was killed: give its command again"):
            runs.resume(early)
    crossing = tracking.create_run(store, tiny(), "crossing", "campaign")
    with pytest.raises(ConfigError, match="is a campaign of several runs: give its command again"):
        runs.resume(crossing)
    assert store.get_run(crossing).info.status == "RUNNING"  # by a process that may well be at work


def test_bad_input_leaves_no_run_behind(tiny):
    settings = {"data": {"name": "digits", "train_samples": 4, "test_samples": 20}}
    with pytest.raises(ConfigError):
        runs.run(tiny(**settings), "tiny")
    store = tracking.client()
    assert store.get_experiment_by_name("fl_lightning") is None
    assert not (run_folder("x").parent).exists()


def test_the_outcome_is_plain_json(tiny):
    outcome = runs.run(tiny(rounds=1), "tiny")
    plain = json.loads(json.dumps(outcome.to_dict()))
    assert set(plain) == {"run_id", "experiment", "rounds", "metrics", "model_uri", "registered_model"}
    assert plain["registered_model"] is None


def test_a_server_that_goes_while_models_are_delivered_leaves_a_run_to_resume(tiny, monkeypatch: pytest.MonkeyPatch):
    def gone(*args: Any, **kwargs: Any) -> None:
        raise MlflowException("API request failed with exception: connection refused")

    with monkeypatch.context() as offline:
        offline.setattr(mlflow.pytorch, "save_model", gone)
        with pytest.raises(tracking.TrackingGoneError, match=r"connection refused.*run --resume") as error:
            runs.run(tiny(rounds=2, tracking={"register": "never"}), "tiny")
    outcome = runs.resume(error.value.run_id)
    assert outcome.model_uri
    assert tracking.client().get_run(outcome.run_id).info.status == "FINISHED"


def test_a_server_that_is_gone_at_the_end_keeps_the_metrics_on_disk(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fl_lightning.tracking._tracker.PATIENCE_SECONDS", 1.5)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as gone:
        gone.setattr(tracking.Tracker, "_deliver", refuse)
        with pytest.raises(tracking.TrackingGoneError, match="3 rounds of metrics are kept") as error:
            runs.run(tiny(**ATTACKED), "tiny")
    rest = runs.resume(error.value.run_id)
    assert [step for step, _ in history(rest.run_id, "attack/success")] == [0, 1, 2]


def test_a_run_may_keep_figures_only(tiny, store_folder: Path):
    outcome = runs.run(tiny(rounds=2, tracking={"models": False}))
    store = tracking.client()
    files = {file.path for file in store.list_artifacts(outcome.run_id)}
    assert files == {"config.yaml", "environment.json"}
    assert outcome.model_uri is None
    assert len(tracking.history(store, outcome.run_id, "global/accuracy")) == outcome.rounds
    with pytest.raises(ConfigError, match="nothing to register"):
        tiny(tracking={"models": False, "register": "best"})
