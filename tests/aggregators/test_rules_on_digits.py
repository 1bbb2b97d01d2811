"""What the rules stop on digits, and what breaks them: softmax regression, 6 of 20 clients malicious, 40 rounds, iid."""

from functools import cache

import pytest

from fl_lightning.config import load
from fl_lightning.federation import Federation

pytestmark = pytest.mark.slow

BASE = {
    "data": {"name": "digits", "validation": 100},
    "rounds": 40,
    "partition": {"name": "iid", "clients": 20},
    "model": {"name": "linear"},
    "client": {"batch_size": 4096, "epochs": 5, "optimizer": {"name": "sgd", "lr": 0.5}},
    "participation": {"name": "full", "malicious": 6},
    "server": {"weights": "equal"},
    "evaluation": {"every": 40},
}
F = {"n_byzantine": 6}
RULES = {
    "mean": "mean",
    "median": "median",
    "krum": {"name": "krum", **F},
    "nnm, krum": {"name": "krum", **F, "pre": ["nnm"]},
    "nnm, median": {"name": "median", "pre": [{"name": "nnm", **F}]},
    "arc, nnm, median": {"name": "median", "pre": [{"name": "arc", **F}, {"name": "nnm", **F}]},
    "bucketing, median": {"name": "median", "pre": ["bucketing"]},
    "centered clipping": {"name": "centered_clipping", "tau": 0.5},
    "meamed": {"name": "meamed", **F},
    "caf": {"name": "caf", **F},
    "cge": {"name": "cge", **F},
    "rlr": {"name": "rlr", "theta": 13},
    "foundation, median": {"name": "median", "pre": [{"name": "foundation", "copies": 10}]},
}
BACKDOOR = {"name": "model_replacement", "boost": 3.0, "objective": {"name": "trigger"}}
ATTACKS = {
    "none": None,
    "sign flip": {"name": "sign_flip", "scale": 3.0},
    "noise": {"name": "gaussian", "std": 1.0},
    "ipm": {"name": "ipm", "epsilon": 0.5},
    "alie": {"name": "alie", "knowledge": "full", "z": 1.5},
    "label flip": {"name": "label_flip", "objective": {"name": "label_map", "mapping": "static"}},
    "backdoor": BACKDOOR,
}


@cache
def outcome(rule, attack):
    """Accuracy, success and the mean share of attackers in what was used."""
    federation = Federation(load(BASE | {"attack": ATTACKS[attack], "aggregator": RULES[rule]}))
    history = federation.run().history
    selected = [figures["attack/selected"] for figures in history if "attack/selected" in figures]
    share = sum(selected) / max(1, len(selected))
    return history[-1]["global/accuracy"], history[-1].get("attack/success", 0.0), share


@pytest.mark.parametrize("rule", ["nnm, krum", "nnm, median", "arc, nnm, median", "caf"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_holds_against_all(rule, attack):
    accuracy, success, _ = outcome(rule, attack)
    assert accuracy > 0.9
    assert attack != "backdoor" or success < 0.05


def test_mixing_makes_krum_use_more_than_one_row():
    assert outcome("nnm, krum", "none")[0] > outcome("krum", "none")[0] + 0.02


def test_the_mean_is_the_control():
    assert outcome("mean", "sign flip")[0] < 0.3
    assert outcome("mean", "backdoor")[1] > 0.9


def test_groups_of_two_spoil_the_median():
    """Six of ten groups can hold an attacker: the condition that `bucketing` checks where it knows f."""
    assert outcome("bucketing, median", "sign flip")[0] < 0.5 < 0.85 < outcome("median", "sign flip")[0]
    assert outcome("bucketing, median", "backdoor")[1] > 0.9 > 0.1 > outcome("median", "backdoor")[1]


def test_clipping_bounds_damage_but_leaves_the_trigger():
    accuracy, success, _ = outcome("centered clipping", "backdoor")
    assert outcome("centered clipping", "sign flip")[0] > 0.85
    assert accuracy > 0.9
    assert success > 0.9


def test_short_attackers_always_pass_the_norm_rule():
    assert outcome("cge", "ipm")[2] > 0.3
    assert outcome("cge", "sign flip")[2] == 0


def test_a_backdoor_rule_is_broken_by_untargeted_attacks():
    assert outcome("rlr", "backdoor")[1] < 0.05
    assert outcome("rlr", "label flip")[0] < 0.5
    assert outcome("rlr", "none")[0] < outcome("mean", "none")[0] - 0.02


def test_copies_of_an_attackers_row_become_a_majority():
    assert outcome("foundation, median", "sign flip")[0] < 0.5 < outcome("median", "sign flip")[0]
