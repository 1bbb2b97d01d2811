"""Trials that are given up before their last round or seed."""

from pathlib import Path

import optuna
import pytest
from searches import ATTACKED, LIGHT, searched, study_of

from fl_lightning import runs, tracking
from fl_lightning.errors import ConfigError
from fl_lightning.search import sweep
from fl_lightning.search._pruning import Halving


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
