"""The search for the strongest of all attacks: which fit, who is tried next, when time is over, who came second."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from searches import LIGHT

from fl_lightning import tracking
from fl_lightning.attacks import Choice
from fl_lightning.cli._tables import print_sweep
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.registry import registry
from fl_lightning.search import search_space, sweep
from fl_lightning.search._bandit import Bandit, Standing, next_arm, standing
from fl_lightning.search._budget import expected_trials, minutes_spent, used_up
from fl_lightning.search._first_trials import check_first
from fl_lightning.search._fitting import all_that_fit
from fl_lightning.search._runners_up import best_of_arms, untried
from fl_lightning.search._space import KEPT, changes
from fl_lightning.search._study import study_digest

ARMS = optuna.distributions.CategoricalDistribution(["a", "b", "c"])


def trial(arm: str, value: float | None, state: TrialState = TrialState.COMPLETE, **more: Any) -> FrozenTrial:
    params: dict[str, Any] = {"params": {"attack": arm}, "distributions": {"attack": ARMS}}
    return create_trial(state=state, value=value, **params, **more)


def lasting(seconds: float, **attributes: Any) -> FrozenTrial:
    made = trial("a", None if attributes else 1.0, **attributes)
    made.datetime_start, made.datetime_complete = (
        datetime(2026, 1, 1),
        datetime(2026, 1, 1) + timedelta(seconds=seconds),
    )
    return made


def test_an_arm_stands_by_its_best_whole_trial_that_held_the_constraints():
    trials = [
        trial("a", 0.5),
        trial("a", 0.7),
        trial("a", 0.9, constraints={"global/accuracy": 0.1}),
        trial("b", 0.8, TrialState.PRUNED),
        trial("b", None, TrialState.FAIL, user_attrs={"error": "diverged"}),
        trial("c", None, TrialState.FAIL),  # killed
    ]
    assert standing(trials, "attack", ARMS.choices, 1) == {
        "a": Standing(0.7, 3),
        "b": Standing(None, 2),
        "c": Standing(None, 0),
    }
    assert standing(trials, "attack", ARMS.choices, -1)["a"] == Standing(-0.5, 3)
    assert next_arm(standing(trials, "attack", ARMS.choices, 1)) == "c"


def test_the_bonus_is_that_of_upper_confidence_bounds():
    """Of 16 trials sqrt(ln 16) = 1.665: a has 1 + .5 * 1.665 / 3 = 1.278, b has u + .5 * 1.665 / sqrt(4) = u + .416."""
    arms = {"a": Standing(2.0, 9), "low": Standing(1.0, 3)}
    assert next_arm(arms | {"b": Standing(1.87, 4)}) == "b"  # u = .87: 1.286
    assert next_arm(arms | {"b": Standing(1.85, 4)}) == "a"  # u = .85: 1.266


def test_a_bandit_spends_most_on_what_is_strong_and_finds_its_settings():
    """Two arms of three cannot pass .3 and .5; the third reaches 1 at x = .2."""
    study = optuna.create_study(direction="maximize", sampler=Bandit(3))

    def objective(one: optuna.Trial) -> float:
        arm = str(one.suggest_categorical("attack", ["a", "b", "c"]))
        x = one.suggest_float(f"{arm}.x", 0, 1)
        return {"a": 0.3, "b": 0.5}.get(arm, 1 - abs(x - 0.2))

    study.optimize(objective, n_trials=30)
    chosen = [one.params["attack"] for one in study.trials]
    assert chosen[:3] == ["a", "b", "c"]
    assert chosen.count("c") > 15
    assert study.best_value > 0.95


def test_time_is_that_of_trials_that_came_to_an_end_shared_by_the_workers(tiny: Any):
    settings = tiny(sweep={"minutes": 1, "trials": 50}).sweep
    trials = [lasting(40.0), lasting(19.0), lasting(1e6, state=TrialState.FAIL)]
    assert minutes_spent(trials, 1) == pytest.approx(59 / 60)
    assert not used_up(settings, trials, 1)
    assert used_up(settings, [*trials, lasting(1.0)], 1)
    assert not used_up(settings, [*trials, lasting(1.0)], 2)
    assert not used_up(replace(settings, minutes=None), [lasting(1e9)], 1)
    assert expected_trials(settings, [lasting(10.0)] * 2, 1) == 6
    assert expected_trials(settings, [], 1) == 50


def test_all_attacks_are_those_that_fit_what_is_granted(tiny: Any):
    searched = {"sweep": {"space": {"attack": {"choice": "all"}}, "threat": {"knowledge": "none"}}}
    experiment = all_that_fit(tiny(**searched))
    names = search_space(experiment)["attack"].values  # type: ignore[union-attr]
    attacks = [registry("attack").build(name) for name in names]
    assert {"sign_flip", "gaussian", "label_flip_dynamic"} <= set(names)
    assert not {"optimal_alie", "hidra", "model_replacement"} & set(names), "they know more, or want something else"
    assert all(attack.needs == "none" for attack in attacks)
    assert experiment.sweep.threat == {
        "knowledge": "none",
        "visible_updates": 0,
        "objective": "untargeted",
        "inflate": 1.0,
    }
    check_first(experiment, search_space(experiment))
    assert all_that_fit(experiment) == experiment
    assert load(experiment.to_dict()) == experiment
    backdoor = {"name": "model_replacement", "objective": {"name": "trigger", "label": 0, "size": 2, "offset": 0}}
    own = all_that_fit(tiny(attack=backdoor, sweep={"space": {"attack": "all"}}))
    backdoors = search_space(own)["attack"].values  # type: ignore[union-attr]
    assert backdoors.index("a3fl") > backdoors.index("neurotoxin"), "what says that it is costly comes last"
    assert own.sweep.threat["objective"]["size"] == 2, "what the configured attack is after"
    with pytest.raises(ConfigError, match=r"no attack fits"):
        all_that_fit(tiny(**searched | {"sweep": searched["sweep"] | {"threat": {"visible_updates": 3}}}))


def test_settings_of_a_search_that_are_not_used_are_not_written(tiny: Any):
    plain = tiny().sweep.to_dict()
    assert not {"minutes", "threat", "runners_up", "worst"} & set(plain)
    with pytest.raises(ConfigError, match="holds knowledge, visible_updates, objective, inflate, got z"):
        tiny(sweep={"threat": {"z": 1}})
    one, longer = tiny(sweep={"minutes": 1}), tiny(sweep={"minutes": 2, "runners_up": 3})
    assert study_digest(one) == study_digest(longer), "more time goes on with the same study"


def test_what_is_configured_outside_of_a_range_stays():
    space = {"attack": Choice(("alie",))}
    assert changes(space, lambda name, span: "alie" if name == "attack" else KEPT) == {"attack": "alie"}


def test_the_arms_are_told_best_first():
    study = optuna.create_study(direction="maximize")
    study.add_trials([trial("a", 0.2), trial("b", 0.5), trial("b", 0.4), trial("c", 0.9, TrialState.PRUNED)])
    assert [(name, tried) for name, tried, _ in best_of_arms(study, "attack")] == [("b", 2), ("a", 1), ("c", 1)]
    assert untried(study, {"attack": Choice(("a", "b", "c", "d"))}) == ["d"]


@pytest.mark.slow
def test_the_search_tells_the_strongest_and_who_came_second(tiny: Any, store_folder: Path, capsys: Any):
    settings = {
        "trials": 7,
        "sampler": "bandit",
        "runners_up": 1,
        "pruner": "none",
        "confirm_seeds": [7, 8],
        "threat": {"knowledge": "full"},
        "space": {"attack": ["sign_flip", "gaussian", "ipm"]},
    }
    experiment = tiny(rounds=4).override(LIGHT | {"sweep": settings})
    outcome = sweep(experiment, "tiny")
    begun = sorted(outcome.trials, key=lambda row: row["number"])
    assert [row["changes"]["attack"] for row in begun[:3]] == ["sign_flip", "gaussian", "ipm"]
    assert all(row["changes"]["attack.knowledge"] == "full" for row in begun)
    arms = {outcome.winner["attack"], *(one.arm for one in outcome.runners_up)}
    assert arms == {"sign_flip", "gaussian", "ipm"}
    second, third = outcome.runners_up
    assert second.behind is not None
    assert second.confirmed["attack/success"].mean == pytest.approx(
        outcome.confirmed["attack/success"].mean - second.behind.mean
    )
    assert third.behind is None
    print_sweep(outcome, experiment)
    assert "runners-up" in (shown := capsys.readouterr().out)
    assert "attack.knowledge" not in shown
    assert "Behind the winner" in tracking.client().get_run(outcome.run_id).data.tags["mlflow.note.content"]
    again = sweep(experiment.override({"sweep.minutes": 1e-6, "sweep.trials": 100}), "tiny")
    assert len(again.trials) == len(outcome.trials), "time was over before"
