"""The search from its first trial to what it says in the end, in MLflow and in Optuna."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import visualization
from searches import ATTACKED, LIGHT, finished_trials, searched, study_of

from fl_lightning import runs, tracking
from fl_lightning.config import Experiment
from fl_lightning.errors import ConfigError
from fl_lightning.search import _sweep as sweeping
from fl_lightning.search import sweep
from fl_lightning.search._trials import score, violations


def test_score_is_the_mean_of_the_last_third():
    history = [{"a": float(value)} for value in (9, 9, 9, 9, 1, 3)] + [{"time/round": 1.0}]
    assert score(history, "a") == 2.0
    with pytest.raises(ConfigError, match="no round reports 'b'"):
        score(history, "b")


def test_violations_by_hand():
    history = [{"global/accuracy": 0.7, "stealth/l2_max": 3.0}]
    bounds = {"global/accuracy": ">= 0.85", "stealth/l2_max": "<= 4"}
    assert violations(history, bounds) == pytest.approx({"global/accuracy": 0.15, "stealth/l2_max": -1.0})


def test_a_sweep_agrees_with_mlflow_and_confirms_on_other_seeds(tiny, store_folder: Path):
    experiment = searched(tiny, pruner="none").override({"tracking": {"register": "auto"}})
    outcome = sweep(experiment, "tiny")
    study = study_of(store_folder)
    store = tracking.client()
    parent = store.get_run(outcome.run_id)
    assert parent.info.status == "FINISHED"
    children = store.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{outcome.run_id}'")
    kinds = [child.data.tags["fl.kind"] for child in children]
    assert kinds.count("trial") == 4
    names = {child.info.run_name for child in children}
    assert {f"#0 {study.trials[0].value:.4f}"} <= names
    assert len({name[:16] for name in names}) == len(names)  # as much as the pages show
    assert {" ".join(name.split()[:3]) for name in names} >= {"seed 7 winner", "seed 8 default"}
    assert {child.data.tags["fl.seed"] for child in children if child.data.tags["fl.kind"] == "confirmation"} == {
        "7",
        "8",
    }
    for trial in study.trials:
        history = [
            one.value
            for one in sorted(
                store.get_metric_history(trial.user_attrs["run_id"], "attack/success"), key=lambda one: one.step
            )
        ]
        if trial.state == optuna.trial.TrialState.COMPLETE:
            assert trial.value == pytest.approx(sum(history[-2:]) / 2)
    complete = [trial.value for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert outcome.searched == {"attack/success": max(complete)}
    assert study.trials[0].params["attack.std"] == 0.05  # the configured attack goes first
    for name, found in (("confirmed", outcome.confirmed), ("configured", outcome.default)):
        assert parent.data.metrics[f"sweep/{name}/attack/success"] == found["attack/success"].mean
    assert outcome.registered_model == "digits-mlp-gaussian-vs-mean/1"
    artifacts = {file.path for file in store.list_artifacts(outcome.run_id)}
    assert {"search_history.png", "search_slices.png", "search.json", "search.html", "analysis.html"} <= artifacts
    said = parent.data.tags["mlflow.note.content"]
    assert said.startswith(
        f"The winner's `attack/success` **{outcome.confirmed['attack/success']}** on 2 unseen seeds; "
    )
    assert outcome.verdict in said
    assert f"(#/experiments/{parent.info.experiment_id}/runs/{outcome.trials[0]['run_id']}?workflowType" in said
    assert parent.data.tags["fl.best.attack.std"] == str(outcome.winner["attack.std"])
    best = [one.value for one in store.get_metric_history(outcome.run_id, "best/attack/success")]
    assert best == sorted(best)
    assert best[-1] == outcome.searched["attack/success"]
    page = Path(store.download_artifacts(outcome.run_id, "search.html")).read_text()
    assert "default-src 'none'" in page
    assert ("plotly.js v" in page) == visualization.is_available()
    assert study.metric_names == ["attack/success"]
    assert outcome.verdict in study.user_attrs["what came out"]
    kept = {child.info.run_name: {file.path for file in store.list_artifacts(child.info.run_id)} for child in children}
    assert kept[f"#0 {study.trials[0].value:.4f}"] == {"config.yaml", "environment.json"}  # a trial's model is nobody's
    assert any("weights" in files for name, files in kept.items() if "winner" in name)


def test_the_same_command_continues_and_then_only_reports(tiny, store_folder: Path):
    first = sweep(searched(tiny, trials=2).override(LIGHT), "tiny")
    more = sweep(searched(tiny, trials=3).override(LIGHT), "tiny")
    assert more.study == first.study
    assert more.run_id == first.run_id
    assert len(study_of(store_folder).trials) == 3


def test_a_trial_that_breaks_is_recorded_and_the_search_goes_on(
    tiny, store_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = sweeping.runs.run, []

    def sometimes(experiment: Experiment, *rest: Any, **more: Any) -> Any:
        calls.append(experiment)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return real(experiment, *rest, **more)

    monkeypatch.setattr(sweeping.runs, "run", sometimes)
    sweep(searched(tiny, trials=3).override(LIGHT), "tiny")
    failed = [trial for trial in study_of(store_folder).trials if trial.state == optuna.trial.TrialState.FAIL]
    assert [trial.user_attrs["error"] for trial in failed] == ["RuntimeError: out of luck"]


def test_constraints_decide_the_winner(tiny):
    outcome = sweep(searched(tiny, constraints={"global/accuracy": ">= 2"}).override(LIGHT), "tiny")
    assert outcome.searched is None  # nothing holds it: said plainly, never called strongest
    assert all(not row["feasible"] for row in outcome.trials)


def test_two_metrics_give_a_pareto_front(tiny, store_folder: Path):
    settings = {"metric": ["attack/success", "stealth/l2_max"], "direction": ["maximize", "minimize"], "trials": 5}
    outcome = sweep(searched(tiny, **settings).override(LIGHT), "tiny")
    front = [row for row in outcome.trials if row["front"]]
    others = [row["values"] for row in outcome.trials if not row["front"]]
    assert front
    for success, distance in others:
        assert any(row["values"][0] >= success and row["values"][1] <= distance for row in front)
    assert set(outcome.confirmed) == {"attack/success", "stealth/l2_max"}
    artifacts = {file.path for file in tracking.client().list_artifacts(outcome.run_id)}
    assert "search_pareto.png" in artifacts


def test_a_shared_warm_up_saves_rounds_and_changes_no_figure(tiny, store_folder: Path):
    late = {"participation": {"name": "full", "malicious": 2, "schedule": {"name": "from_round", "round": 4}}}
    experiment = tiny(**ATTACKED | late | {"sweep": ATTACKED["sweep"] | {"trials": 3, "pruner": "none"}}).override(
        LIGHT
    )
    outcome = sweep(experiment, "tiny")
    study = study_of(store_folder)
    assert [trial.user_attrs["rounds"] for trial in study.trials] == [6, 2, 2]
    assert outcome.rounds_saved == pytest.approx(1 - 10 / 18)
    alone = sweeping.runs.run(experiment.override(study.trials[2].user_attrs["changes"]), "tiny")
    store = tracking.client()
    for metric in ("global/accuracy", "attack/success", "stealth/l2_max"):
        histories = [
            [(one.step, one.value) for one in store.get_metric_history(run_id, metric)]
            for run_id in (alone.run_id, study.trials[2].user_attrs["run_id"])
        ]
        assert sorted(histories[0]) == sorted(histories[1])
    assert not (store_folder / "warmup").exists() or not list((store_folder / "warmup").iterdir())


@pytest.mark.slow
def test_a_defense_is_searched_against_the_attack_of_a_registered_model(tiny, store_folder: Path):
    strong = {"name": "gaussian", "std": 3.0}
    attacked = ATTACKED | {"attack": strong, "tracking": {"register": "always"}, "evaluation": {"twin": True}}
    poisoned = runs.run(tiny(**attacked | {"sweep": {}}), "tiny")
    assert poisoned.registered_model is not None
    search = {
        "against": poisoned.registered_model,
        "direction": "minimize",
        "space": {"defenses.clip.max_norm": [1e3, 0.5]},
        "trials": 5,
        "pruner": "none",
    }
    clipped = {"attack": "sign_flip", "rounds": 12, "defenses": {"clip": {"name": "norm_bound", "max_norm": 1e3}}}
    outcome = sweep(searched(tiny, **search).override(clipped), "tiny")
    assert outcome.winner == {"defenses.clip.max_norm": 0.5}
    assert outcome.gain.mean > 0
    assert outcome.registered_model is None  # a model with less of the attack in it
    store = tracking.client()
    for run_id in tracking.children(store, outcome.run_id).values():
        assert store.get_run(run_id).data.params["attack.std"] == "3.0"
    names = {run.info.run_name for run in store.search_runs([store.get_run(outcome.run_id).info.experiment_id])}
    assert any(name.startswith("seed 7 default") for name in names)


def test_another_database_is_named_by_an_environment_variable(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FL_LIGHTNING_STUDIES", "mysql://me:secret@there/studies")
    with pytest.raises(ConfigError, match=r"must be postgresql://\.\.\. or sqlite:///\.\.\., got mysql:\.\.\.$"):
        sweep(searched(tiny), "tiny")
    pytest.importorskip("psycopg2", reason="needs psycopg2: pip install 'fl-lightning[postgres]'")
    monkeypatch.setenv("FL_LIGHTNING_STUDIES", "postgresql://me:secret@127.0.0.1:1/studies")
    with pytest.raises(ConfigError, match=r"no database at FL_LIGHTNING_STUDIES .*me:\*\*\*@127") as told:
        sweep(searched(tiny), "tiny")
    assert "secret" not in str(told.value)


@pytest.mark.slow
def test_trials_run_on_ray_and_are_watched_together(tiny, store_folder: Path, local_ray: Any):
    seen: list[int] = []
    experiment = searched(tiny, trials=5, jobs="ray", confirm_seeds=[7])
    outcome = sweep(
        experiment, "tiny", progress=lambda study, trials: seen.append(len(study.get_trials(deepcopy=False)))
    )
    assert len(finished_trials(store_folder)) == 5
    assert seen[-1] == 5
    assert len({row["run_id"] for row in outcome.trials}) == 5
    more = sweep(searched(tiny, trials=6, confirm_seeds=[7]), "tiny")  # on this machine it is the same study
    assert (more.study, len(finished_trials(store_folder))) == (outcome.study, 6)
