"""A search that is begun again goes on as if it had never stopped; what comes to no figure is told, and not tried for ever."""

import math
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
import pytest

from fl_lightning import tracking
from fl_lightning.errors import ConfigError
from fl_lightning.runs import run_folder
from fl_lightning.search import _trials as trials
from fl_lightning.search import search_space, studies_url, sweep
from fl_lightning.search._ended import killed
from fl_lightning.search._reported import check_reported
from fl_lightning.search._study import Placed, Task, end_killed
from fl_lightning.search._trials import FAR, violations
from fl_lightning.search._workers import log_course

SPACE = {"attack.std": {"low": 1e-4, "high": 10.0, "log": True}}


def searched(tiny: Any, **search: Any) -> Any:
    settings = {"trials": 2, "confirm_seeds": [7], "space": SPACE, "pruner": "none"} | search
    return tiny(attack="gaussian", rounds=2, tracking={"models": False}, sweep=settings)


def draw(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    return (x - 0.3) ** 2 + (y - 0.6) ** 2


def draw_arm(trial: optuna.Trial) -> float:
    arm = trial.suggest_categorical("arm", ["left", "middle", "right"])
    return {"left": 0.1, "middle": 0.0, "right": 0.5}[str(arm)] + trial.suggest_float(f"{arm}.x", 0, 1) ** 2


GIVEN: dict[Any, dict[str, Any]] = {draw: {"x": 0.5, "y": 0.5}, draw_arm: {"arm": "right", "right.x": 0.5}}


def study(folder: Path, name: str, kind: str) -> optuna.Study:
    url = f"sqlite:///{folder / 'optuna.db'}"
    return optuna.create_study(storage=url, study_name=name, sampler=Placed(kind, 3, url), load_if_exists=True)


@pytest.mark.parametrize(("kind", "objective"), [("random", draw), ("tpe", draw), ("bandit", draw_arm)])
def test_the_draws_of_a_continued_search_are_those_of_an_undisturbed_one(
    runs_folder: Path, kind: str, objective: Any, monkeypatch: pytest.MonkeyPatch
):
    runs_folder.mkdir()
    monkeypatch.setattr(tracking, "end_children", lambda *_: [])
    monkeypatch.setattr(tracking, "take_back", lambda *_: [])
    whole = study(runs_folder, "whole", kind)
    whole.enqueue_trial(GIVEN[objective])
    whole.optimize(objective, n_trials=9)
    broken = study(runs_folder, "broken", kind)
    broken.set_user_attr("run_id", "r")
    broken.enqueue_trial(GIVEN[objective])
    for done in (0, 3, 2, 4):  # each time the process is killed in the middle of a trial, the first time of a given one
        again = study(runs_folder, "broken", kind)
        again.optimize(objective, n_trials=done)
        objective(again.ask())
        end_killed(again)
    assert killed(broken.get_trials()) == 4

    def drawn(one: optuna.Study) -> list[dict[str, Any]]:
        return [trial.params for trial in one.get_trials(states=(optuna.trial.TrialState.COMPLETE,))]

    assert drawn(study(runs_folder, "broken", kind)) == drawn(whole)
    assert len({tuple(params.values()) for params in drawn(whole)}) == 9


def test_points_that_a_killed_search_did_not_log_are_logged_once(tiny: Any, store_folder: Path):
    experiment, store = searched(tiny), tracking.client()
    one = study(store_folder, "one", "random")
    run_id = tracking.create_run(store, experiment, "search", "study")
    task = replace(Task("one", studies_url(), experiment, {}, "tiny"), run_id=run_id)
    one.set_user_attr("run_id", run_id)
    one.optimize(draw, n_trials=1)
    log_course(task, one, 0)
    one.optimize(draw, n_trials=1)  # the process is killed before it has logged that
    draw(one.ask())  # and another time in the middle of a trial
    left = tracking.create_run(store, experiment, "#2 0.9", "trial", run_id)
    tracking.end_run(store, left, "FINISHED")  # after its run had come to its end
    run_folder(left).mkdir(parents=True)
    end_killed(one)
    assert store.get_run(left).info.status == "KILLED"
    assert not run_folder(left).exists()
    one.optimize(draw, n_trials=1)
    for _ in range(2):
        log_course(task, one)
    values = [trial.value for trial in one.get_trials(states=(optuna.trial.TrialState.COMPLETE,))]
    assert len(values) == 3
    for name, expected in (("sweep/attack/success", values), ("best/attack/success", accumulate(values, min))):
        points = store.get_metric_history(run_id, name)
        assert [(point.step, point.value) for point in points] == list(enumerate(expected))


def test_a_constraint_on_what_is_no_number_is_missed():
    assert violations([{"a": math.nan}], {"a": ">= 1"}) == {"a": FAR}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"metric": "attack/sucess"}, r"sweep.metric: no round reports 'attack/sucess'; did you mean 'attack/success'"),
        ({"metric": "defence/clip/rate"}, "sweep.metric: no (run|round) reports"),
        ({"metric": "impact/accuracy_drop"}, "no round reports"),  # trials run without the twin
        ({"constraints": {"global/acuracy": ">= 0.5"}}, "sweep.constraints: no (run|round) reports 'global/acuracy'"),
    ],
)
def test_a_metric_that_no_round_reports_is_refused_before_the_search(tiny: Any, search: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        check_reported(experiment := searched(tiny, **search), search_space(experiment))


def test_metrics_that_there_are_pass(tiny: Any):
    experiment = searched(tiny, constraints={"global/accuracy": ">= 0.5", "attack/persistence": ">= 1"})
    check_reported(experiment, search_space(experiment))


def test_a_search_survives_its_store(tiny: Any, store_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Without models; its run deleted; MLflow's database gone; a trial that comes to no number; an outage in a trial."""
    first = sweep(searched(tiny), "tiny")
    assert first.registered_model is None
    store = tracking.client()
    store.delete_run(first.run_id)
    assert sweep(searched(tiny), "tiny").run_id == first.run_id
    assert store.get_run(first.run_id).info.lifecycle_stage == "active"

    real = trials.score
    with monkeypatch.context() as patch:
        patch.setattr(trials, "score", lambda history, metric: math.nan)
        with pytest.raises(ConfigError, match="attack/success is nan"):
            sweep(searched(tiny, sampler="random"), "tiny")
        patch.setattr(trials, "score", real)

        def gone(*_: Any, **__: Any) -> None:
            raise tracking.TrackingGoneError("r", 1, store_folder, None)

        patch.setattr(trials, "_one_seed", gone)
        with pytest.raises(ConnectionError, match="does not answer"):
            sweep(searched(tiny, trials=3), "tiny")
    states = [trial.state.name for trial in optuna.load_study(study_name=first.study, storage=studies_url()).trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL"]
    more = sweep(searched(tiny, trials=3), "tiny")
    assert [row["state"] for row in more.trials] == ["complete"] * 3
    assert more.run_id == first.run_id
