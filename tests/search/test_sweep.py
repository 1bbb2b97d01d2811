"""The search: its space, its trials in MLflow and Optuna, what a kill costs, what it says in the end."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import visualization
from servers import postgresql

from fl_lightning import runs, tracking
from fl_lightning.attacks import Choice, Tunable
from fl_lightning.config import Experiment, dump
from fl_lightning.errors import ConfigError
from fl_lightning.search import _sweep as sweeping
from fl_lightning.search import sweep
from fl_lightning.search._first_trials import configured, enqueue_first, fitted
from fl_lightning.search._pruning import Halving
from fl_lightning.search._space import changes, search_space, tunables
from fl_lightning.search._storage import studies_url
from fl_lightning.search._trials import score, violations

ATTACKED: dict[str, Any] = {
    "attack": {"name": "gaussian", "std": 0.05},
    "participation": {"name": "full", "malicious": 2},
    "rounds": 6,
    "sweep": {"trials": 4, "confirm_seeds": [7, 8], "space": {"attack.std": {"low": 1e-4, "high": 10.0, "log": True}}},
}


LIGHT = {"tracking.models": False, "tracking.register": "never"}
"""Of searches whose figures are looked at, not their models."""


def searched(tiny: Any, **sweep_settings: Any) -> Experiment:
    experiment: Experiment = tiny(**ATTACKED | {"sweep": ATTACKED["sweep"] | sweep_settings})
    return experiment


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=studies_url())


def test_the_space_is_the_attacks_own_unless_given(tiny):
    own = search_space(tiny(attack="model_replacement"))
    assert own
    assert all(path.startswith("attack.") for path in own)
    given = search_space(
        tiny(attack="gaussian", sweep={"space": {"attack.std": {"low": 1, "high": 2}, "seed": [1, 2]}})
    )
    assert given == {"attack.std": Tunable(1, 2), "seed": Choice((1, 2))}


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"attack": None}, "a sweep searches the strongest attack"),
        ({"attack": "gaussian", "sweep": {"space": {"attack.std": {"low": 3}}}}, "sweep.space.attack.std"),
    ],
)
def test_a_space_that_is_none_is_refused(tiny, slots, message):
    with pytest.raises(ConfigError, match=message):
        search_space(tiny(**slots))


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


@pytest.mark.slow
def test_a_trial_that_was_killed_is_tried_again_even_if_it_was_the_last(tiny, store_folder: Path):
    sweep(searched(tiny, trials=1).override(LIGHT), "tiny")
    study_of(store_folder).add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    sweep(searched(tiny, trials=2).override(LIGHT), "tiny")
    assert len(finished_trials(store_folder)) == 2


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


PROGRAM = """
import sys, yaml
from fl_lightning.config import load
from fl_lightning.search._first_trials import configured, enqueue_first, fitted
from fl_lightning.search import sweep
if __name__ == "__main__":
    sweep(load(yaml.safe_load(open(sys.argv[1]))), "tiny")
"""


@pytest.mark.slow
def test_two_workers_and_a_kill_9_leave_nothing_running(tiny, store_folder: Path, tmp_path: Path):
    experiment = searched(tiny, trials=6, jobs=2)
    config, program = tmp_path / "config.yaml", tmp_path / "program.py"
    config.write_text(dump(experiment))
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(config)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True) as process:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            time.sleep(0.3)
            if "COMPLETE" in trial_states(store_folder).values():
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 1 <= len(finished_trials(store_folder)) < 6
    outcome = sweep(experiment.model_copy(update={"sweep": searched(tiny, trials=6).sweep}), "tiny")
    states = [trial.state for trial in study_of(store_folder).trials]
    assert optuna.trial.TrialState.RUNNING not in states
    errors = [trial.user_attrs.get("error") for trial in study_of(store_folder).trials]
    assert len(finished_trials(store_folder)) == 6, errors
    store = tracking.client()
    parent = store.get_run(outcome.run_id)
    query = f"tags.`mlflow.parentRunId` = '{outcome.run_id}' AND attributes.status = 'RUNNING'"
    assert not store.search_runs([parent.info.experiment_id], query)


@pytest.fixture(params=["sqlite", "postgresql"])
def study_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the searches of a test are kept."""
    if request.param == "sqlite":
        yield studies_url()
        return
    with postgresql() as url:
        monkeypatch.setenv("FL_LIGHTNING_STUDIES", url)
        yield url


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_lose_no_finished_trial(tiny, store_folder: Path, tmp_path: Path, study_store: str):
    experiment = searched(tiny, trials=100_000, jobs=2)  # no machine is fast enough to end it before the last kill
    config, program = tmp_path / "config.yaml", tmp_path / "program.py"
    config.write_text(dump(experiment))
    program.write_text(PROGRAM)
    moments = random.Random(0)
    finished: set[int] = set()
    for kill in range(10):
        begun = len(trial_states(store_folder))
        command = [sys.executable, str(program), str(config)]
        with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True) as process:
            deadline = time.monotonic() + 120
            while kill % 5 and len(trial_states(store_folder)) <= begun and time.monotonic() < deadline:
                assert process.poll() is None, "the search ended before it was killed"
                time.sleep(0.1)  # two of ten die while they start, the others some time after their first trial began
            time.sleep(moments.uniform(0, 8))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        now = finished_trials(store_folder)
        assert finished <= now
        finished = now
    assert finished
    trials = len(finished) + 5
    outcome = sweep(experiment.model_copy(update={"sweep": searched(tiny, trials=trials).sweep}), "tiny")
    assert finished <= finished_trials(store_folder)
    study = study_of(store_folder)
    assert optuna.trial.TrialState.RUNNING not in {trial.state for trial in study.trials}
    assert len(finished_trials(store_folder)) == trials
    store = tracking.client()
    ours = [store.get_run(outcome.run_id).info.experiment_id]
    assert not store.search_runs(ours, "attributes.status = 'RUNNING'")
    ended = {run.info.run_id for run in store.search_runs(ours, "attributes.status = 'FINISHED'")}
    assert {trial.user_attrs["run_id"] for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")} <= ended


def trial_states(folder: Path) -> dict[int, str]:
    """State of every trial that was begun by its number, read beside Optuna, which would make the tables itself.

    Not read-only: what a killed process left half written is rolled back by the next reader.
    """
    if studies_url().startswith("sqlite:"):
        if not (folder / "optuna.db").is_file():
            return {}
        connect = lambda: sqlite3.connect(folder / "optuna.db")  # noqa: E731
        unmade: type[Exception] = sqlite3.OperationalError
    else:
        import psycopg2

        url = studies_url().replace("postgresql+psycopg2", "postgresql")
        connect, unmade = lambda: psycopg2.connect(url), psycopg2.errors.UndefinedTable
    with contextlib.closing(connect()) as database, contextlib.closing(database.cursor()) as cursor:
        try:
            cursor.execute("SELECT number, state FROM trials WHERE state != 'WAITING'")
        except unmade:  # they are being made
            return {}
        return {int(number): str(state) for number, state in cursor.fetchall()}


def finished_trials(folder: Path) -> set[int]:
    return {number for number, state in trial_states(folder).items() if state in ("COMPLETE", "PRUNED")}


def test_a_search_over_attacks_draws_only_what_the_drawn_attack_has(tiny):
    experiment = tiny(**ATTACKED | {"sweep": {"space": {"attack": {"choice": ["alie", "sign_flip"]}}}})
    asked: list[str] = []

    def ask(name: str, span: Any) -> Any:
        asked.append(name)
        return {"attack": "sign_flip", "sign_flip.of": "mean"}.get(name, 2.5)

    drawn = changes(search_space(experiment), ask)
    assert asked == ["attack", "sign_flip.scale", "sign_flip.of"]
    assert drawn == {"attack": "sign_flip", "attack.scale": 2.5, "attack.of": "mean"}
    changed = experiment.override(drawn)
    assert changed.attack.name == "sign_flip"  # type: ignore[union-attr]
    assert changed.attack.scale == 2.5  # type: ignore[union-attr]


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


def test_a_space_names_every_tunable_of_an_attack_with_its_own_type(tiny):
    from fl_lightning.registry import registry

    for attack in registry("attack"):
        for name, span in tunables(attack).items():  # type: ignore[arg-type]
            annotation = str(attack.__dataclass_fields__[name].type)  # type: ignore[attr-defined]
            if isinstance(span, Tunable):
                assert span.integer == ("int" in annotation and "float" not in annotation), (attack.name, name)


def reported(
    value: float, state: optuna.trial.TrialState, steps: int = 9, missed: float = 0.0
) -> optuna.trial.FrozenTrial:
    """A trial that reported the same value in every round."""
    done = state == optuna.trial.TrialState.COMPLETE
    trial = optuna.trial.create_trial(
        state=state, value=value if done else None, intermediate_values=dict.fromkeys(range(steps), value)
    )
    if missed:
        trial.set_constraint("global/accuracy", missed)
    return trial


@pytest.mark.parametrize(
    ("value", "direction", "given_up"), [(0.5, "maximize", True), (0.9, "maximize", False), (0.2, "minimize", False)]
)
def test_halving_lets_the_best_third_go_on(value: float, direction: str, given_up: bool):
    pruner = Halving(first=3)
    study = optuna.create_study(direction=direction, pruner=pruner)
    for other in (0.3, 0.6, 0.7, 0.8, 0.85):  # six with the new one: two go on
        study.add_trial(reported(other, optuna.trial.TrialState.COMPLETE))
    trial = study.ask()
    decided = []
    for step in range(9):
        trial.report(value, step)
        decided.append(trial.should_prune())
    assert decided == [step in (2, 8) and given_up for step in range(9)]


def test_halving_compares_with_no_trial_that_broke_a_constraint():
    study = optuna.create_study(direction="maximize", pruner=Halving(first=1))
    study.add_trial(reported(0.9, optuna.trial.TrialState.COMPLETE, missed=0.1))
    study.add_trial(reported(0.4, optuna.trial.TrialState.COMPLETE))
    trial = study.ask()
    trial.report(0.5, 0)
    assert not trial.should_prune()
    trial.report(0.3, 2)  # the second comparison, late because a round reported nothing
    assert trial.should_prune()


def test_a_success_that_falls_does_not_save_a_trial():
    """Untargeted success is high while the model knows nothing: what counts is where it lies now, not where it once was."""
    study = optuna.create_study(direction="maximize", pruner=Halving(first=3))
    study.add_trial(reported(0.8, optuna.trial.TrialState.COMPLETE))
    study.add_trial(reported(0.8, optuna.trial.TrialState.COMPLETE))
    trial = study.ask()
    for step, value in enumerate((0.9, 0.9, 0.7)):
        trial.report(value, step)
    assert trial.should_prune()


@pytest.mark.slow
def test_a_sweep_says_what_pruning_saved(tiny, store_folder: Path):
    experiment = searched(tiny, trials=6, confirm_seeds=[7], sampler="random")
    outcome = sweep(experiment.model_copy(update={"rounds": 12}), "tiny")
    study = study_of(store_folder)
    pruned = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert pruned
    assert {trial.user_attrs["rounds"] for trial in pruned} <= {3, 9}
    rounds = sum(trial.user_attrs["rounds"] for trial in study.trials)
    assert outcome.rounds_saved == pytest.approx(1 - rounds / (12 * 6))
    assert tracking.client().get_run(outcome.run_id).data.metrics["sweep/rounds_saved"] == outcome.rounds_saved
    given_up = tracking.client().get_run(pruned[0].user_attrs["run_id"])
    assert "fl.model_uri" not in given_up.data.tags
    assert given_up.info.status == "KILLED"
    assert given_up.info.run_name.startswith(f"#{pruned[0].number} pruned r")
    assert runs.resume(given_up.info.run_id).stopped == given_up.data.tags["fl.stopped"]


def test_a_trial_of_several_seeds_is_given_up_by_wilcoxons_test(tiny, store_folder: Path):
    seeds = [11, 12, 13, 14]
    search = {"seeds": seeds, "trials": 3, "sampler": "random", "space": {"attack.std": [30.0, 1e-6]}}
    experiment = tiny(**ATTACKED | {"attack": {"name": "gaussian", "std": 30.0}, "sweep": search})
    outcome = sweep(experiment.override(LIGHT), "tiny")
    study, store = study_of(store_folder), tracking.client()
    strong = study.trials[0]
    assert strong.params == {"attack.std": 30.0}
    seeded = tracking.children(store, strong.user_attrs["run_id"])
    assert sorted(seeded) == seeds
    scores = []
    for run_id in seeded.values():
        history = sorted(store.get_metric_history(run_id, "attack/success"), key=lambda one: one.step)
        scores.append(sum(one.value for one in history[-2:]) / 2)
    assert strong.value == pytest.approx(sum(scores) / 4)
    assert sorted(strong.intermediate_values.values()) == pytest.approx(sorted(scores))
    weak = [trial for trial in study.trials if trial.params["attack.std"] == 1e-6]
    assert weak
    for trial in weak:
        assert trial.state == optuna.trial.TrialState.PRUNED
        assert len(trial.intermediate_values) == 3  # of fewer seeds the smallest p-value is 1/4
    assert outcome.rounds_saved == pytest.approx(len(weak) * 6 / (3 * 4 * 6))


def test_rounds_and_seeds_have_pruners_of_their_own(tiny):
    assert tiny().sweep.chosen_pruner == "halving"
    assert tiny(sweep={"seeds": [1, 2]}).sweep.chosen_pruner == "wilcoxon"
    for settings in ({"pruner": "wilcoxon"}, {"pruner": "halving", "seeds": [1, 2]}):
        with pytest.raises(ConfigError, match="wilcoxon compares the seeds"):
            tiny(sweep=settings)
    with pytest.raises(ConfigError, match="differ from each other and from confirm_seeds"):
        tiny(sweep={"seeds": [1, 2], "confirm_seeds": [2]})


def test_a_search_over_attacks_begins_with_each_as_it_is_configured(tiny):
    experiment = tiny(sweep={"space": {"attack": ["fang_krum", "alie"]}})
    first = configured(experiment, search_space(experiment))
    fields = {"search": "halving", "epsilon": 1e-3, "retreat": True, "start": 1.0}
    assert first[0] == {"attack": "fang_krum", **{f"fang_krum.{field}": value for field, value in fields.items()}}
    assert [one["attack"] for one in first] == ["fang_krum", "alie"]


@pytest.mark.parametrize(("warm_start", "won"), [(0, []), (1, [3.0]), (2, [3.0, 2.0])])
def test_a_study_begins_with_the_winners_of_earlier_ones(tiny, store_folder: Path, warm_start: int, won: list[float]):
    storage = f"sqlite:///{store_folder / 'optuna.db'}"
    span = optuna.distributions.FloatDistribution(1e-4, 1e9, log=True)
    for name, direction, std, weak in [
        ("a-gaussian-vs-mean-1", "maximize", 2.0, 0.5),
        ("a-gaussian-vs-mean-2", "maximize", 1e8, 0.5),  # outside the space
        ("a-gaussian-vs-mean-3", "maximize", 3.0, 0.5),
        ("a-gaussian-vs-mean-4", "minimize", 4.0, 0.5),  # another end
        ("a-gaussian-vs-krum-5", "maximize", 5.0, 0.5),  # another rule
    ]:
        study = optuna.create_study(storage=storage, study_name=name, direction=direction)
        sign = 1 if direction == "maximize" else -1
        for value, figure in ((weak, 0.1), (std, 0.9)):
            params: dict[str, Any] = {"params": {"attack.std": value}, "distributions": {"attack.std": span}}
            study.add_trial(optuna.create_trial(value=sign * figure, **params))
    experiment = searched(tiny, warm_start=warm_start)
    study = optuna.create_study(storage=storage, study_name="a-gaussian-vs-mean-6", direction="maximize")
    enqueue_first(study, storage, experiment, search_space(experiment))
    first = [trial.system_attrs["fixed_params"]["attack.std"] for trial in study.trials]
    assert first[1:] == won
    assert first[0] == experiment.to_dict()["attack"]["std"]


def test_earlier_winners_that_do_not_fit_are_left_out(tiny):
    experiment = tiny(sweep={"space": {"attack": ["fang_krum", "alie"]}})
    space = search_space(experiment)
    won = {"attack": "alie", "alie.z": 2.0, "fang_krum.epsilon": 1e-3, "cmp.eta": 0.1}
    assert fitted(experiment, space, won) == {"attack": "alie", "alie.z": 2.0}
    assert fitted(experiment, space, {"attack": "cmp"}) == {}


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
