"""The figures of a round against numbers worked out by hand."""

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torch.testing import assert_close

from fl_lightning.aggregators import Layer, Layout
from fl_lightning.attacks import Goal
from fl_lightning.data import Samples
from fl_lightning.federation import Federation
from fl_lightning.metrics import (
    accuracy_gap,
    bounds,
    curves,
    detection,
    evaluate,
    interval,
    layer_distributions,
    persistence,
    stealth,
)
from fl_lightning.metrics._stealth import distribution
from fl_lightning.models import FlatNetwork, Linear, Loss
from fl_lightning.randomness import generator

BAD = torch.tensor([True, False, False, True, False])


# --- detection ---------------------------------------------------------------------------------------------------------


def test_rates_by_hand():
    keep = torch.tensor([True, True, False, False, True])
    figures = detection(keep, BAD, None, "defense")
    assert figures == {
        "defense/false_alarm_rate": pytest.approx(1 / 3),  # one of three benign rows is thrown away
        "defense/missed_alarm_rate": pytest.approx(1 / 2),  # one of two malicious rows passes
    }


@pytest.mark.parametrize(
    ("scores", "auc"),
    [
        ([9.0, 1.0, 2.0, 8.0, 3.0], 1.0),
        ([1.0, 9.0, 8.0, 2.0, 7.0], 0.0),
        ([5.0, 1.0, 9.0, 3.0, 2.0], 4 / 6),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 0.5),
        ([2.0, 1.0, 2.0, 2.0, 3.0], (0.5 + 1 + 0) / 3),
        # Scores have any scale: what a squashing function cannot tell apart is still told apart here.
        ([2000.0, 1000.0, 1001.0, 1999.0, 1002.0], 1.0),
        ([2e-9, 1e-9, 1e-9, 2e-9, 1e-9], 1.0),
        ([-1000.0, -3000.0, -2000.0, -1000.0, -2000.0], 1.0),
        ([math.inf, 1.0, 2.0, math.inf, 3.0], 1.0),
    ],
)
def test_roc_auc_by_hand(scores: list[float], auc: float):
    figures = detection(~BAD, BAD, torch.tensor(scores), "defense/x")
    assert figures["defense/x/roc_auc"] == pytest.approx(auc)


@pytest.mark.parametrize(
    ("scores", "bad", "good"),
    [([9.0, 1.0, 2.0, 8.0, 3.0], 8.0, 3.0), ([-2.0, -9.0, -1.0, -3.0, -4.0], -3.0, -1.0)],
)
def test_scores_are_apart_by_the_least_and_the_most_suspicious(scores: list[float], bad: float, good: float):
    figures = detection(~BAD, BAD, torch.tensor(scores), "d")
    assert (figures["d/score_malicious"], figures["d/score_benign"]) == (bad, good)
    assert figures["d/score_gap"] == bad - good
    assert "d/score_gap" not in detection(~BAD, BAD, torch.tensor(scores) * math.inf, "d")


def test_a_rate_without_denominator_is_left_out():
    keep, scores = torch.ones(3, dtype=torch.bool), torch.arange(3.0)
    none, everybody = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    assert detection(keep, none, scores, "d") == {"d/false_alarm_rate": 0.0}
    assert detection(keep, everybody, scores, "d") == {"d/missed_alarm_rate": 1.0}


# --- stealth -----------------------------------------------------------------------------------------------------------


def test_stealth_by_hand():
    updates = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 3.0]])
    figures = stealth(updates, BAD)
    # others of row 0: (-2, 5); of row 3: (4, 9)
    first, second = (3 * -2 + 4 * 5) / (5 * math.sqrt(29)), -4 / math.sqrt(97)
    assert figures["stealth/cosine"] == pytest.approx((first + second) / 2)
    assert figures["stealth/l2_max"] == pytest.approx(math.sqrt(20))  # (3, 4) to (1, 0); (-3, 0) to (0, 3) is 4.24
    assert figures["stealth/norm_ratio"] == pytest.approx(5 / 2)
    assert figures["stealth/spread"] == pytest.approx(math.sqrt(36 + 16) / 2)  # (-3, 0) from (3, 4)
    # means: (0, 2) of the malicious ones, (1, 5) / 3 of the others
    assert figures["stealth/opposition"] == pytest.approx(-5 / math.sqrt(26))
    assert stealth(-updates[1:3].repeat(2, 1), BAD[[1, 2, 0, 3]])["stealth/opposition"] == pytest.approx(-1)
    assert stealth(torch.tensor([[1.0, 2.0], [-2.0, -4.0]]), BAD[:2])["stealth/opposition"] == pytest.approx(1)


def test_distributions_are_as_far_apart_as_the_oracle_says():
    rows = torch.randn(6, 500, generator=generator(0, "rows"))
    rows[5] = 3 * rows[5] + 0.5
    bad = torch.arange(6) >= 4
    expected = [ks_2samp(row.numpy(), rows[:4].flatten().numpy()).statistic for row in rows[4:]]
    assert distribution(rows, bad) == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert expected[0] < 0.1 < expected[1]
    ties = (2 * rows).round()
    expected_ties = [ks_2samp(row.numpy(), ties[:4].flatten().numpy()).statistic for row in ties[4:]]
    assert distribution(ties, bad) == pytest.approx(sum(expected_ties) / 2, abs=1e-6)
    wide = rows.repeat_interleave(10, dim=1)  # more coordinates than are looked at
    assert distribution(wide, bad) == pytest.approx(sum(expected) / 2, abs=0.02)


def test_layers_are_compared_one_by_one():
    """Two layers, the second with a bias: only the second one's values are others."""
    layers = (
        Layer("0.weight", slice(0, 3), (3,)),
        Layer("2.weight", slice(3, 5), (2,)),
        Layer("2.bias", slice(5, 6), (1,)),
    )
    layout = Layout((*layers, Layer("1.running_mean", slice(6, 8), (2,), trained=False)))
    rows = torch.arange(8.0).repeat(4, 1)
    rows[3, 3:6] += 100
    rows[3, 6:] += 100  # running statistics are no layer
    assert layer_distributions(rows, torch.arange(4) == 3, layout) == {
        "stealth/distribution_layer0": 0.0,
        "stealth/distribution_layer1": 1.0,
    }
    assert layer_distributions(rows, torch.zeros(4, dtype=torch.bool), layout) == {}
    assert bounds("stealth/distribution_layer1") == (0.0, 1.0)


def test_stealth_needs_both_kinds():
    updates = torch.ones(3, 2)
    assert stealth(updates, torch.zeros(3, dtype=torch.bool)) == {}
    assert stealth(updates, torch.ones(3, dtype=torch.bool)) == {}
    assert "stealth/norm_ratio" not in stealth(torch.zeros(3, 2), torch.tensor([True, False, False]))


# --- interval ----------------------------------------------------------------------------------------------------------


def test_students_interval():
    # t(0.975, 2) = 4.302653, standard deviation 0.1
    found = interval([0.8, 0.9, 1.0])
    assert found.mean == pytest.approx(0.9)
    assert found.half == pytest.approx(4.302652729911275 * 0.1 / math.sqrt(3))
    assert str(found) == "0.900 ± 0.248"
    assert math.isnan(interval([1.0, 3.0]).half)


def test_interval_of_one_value_and_of_none():
    assert math.isnan(interval([0.5]).half)
    assert str(interval([0.5])) == "0.500"
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


# --- evaluation --------------------------------------------------------------------------------------------------------


def identity(loss: Loss, k: int) -> tuple[FlatNetwork, torch.Tensor]:
    """A linear network whose scores are its inputs."""
    network = torch.nn.Linear(k, k if loss == "cross_entropy" else 1)
    flat = FlatNetwork(network, loss)
    weight = torch.eye(k) if loss == "cross_entropy" else torch.ones(1, k)
    return flat, torch.cat([weight.flatten(), torch.zeros(network.out_features)])


CLEAN = Samples(torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0], [2.0, 0, 0]]), torch.tensor([0, 1, 2, 1]))


def test_classification_without_an_attack():
    flat, theta = identity("cross_entropy", 3)
    figures = evaluate(flat, theta, Goal(CLEAN, None), 3, attacked=False)
    right, wrong = math.log(1 + 2 * math.exp(-2)), math.log(1 + 2 * math.exp(-2)) + 2
    assert figures == {
        "global/accuracy": 0.75,
        "global/loss": pytest.approx((3 * right + wrong) / 4, rel=1e-6),
    }


def test_untargeted_success_is_the_error_rate():
    flat, theta = identity("cross_entropy", 3)
    figures = evaluate(flat, theta, Goal(CLEAN, None), 3, attacked=True)
    assert figures["attack/success"] == 0.25
    assert "attack/confidence" not in figures


def test_success_and_confidence_are_those_of_the_wished_labels():
    flat, theta = identity("cross_entropy", 3)
    wished = Samples(torch.tensor([[math.log(2.0), 0, 0], [0, math.log(6.0), 0]]), torch.tensor([0, 2]))
    figures = evaluate(flat, theta, Goal(CLEAN, wished), 3, attacked=True)
    assert figures["attack/success"] == 0.5
    assert figures["attack/confidence"] == pytest.approx((2 / 4 + 1 / 8) / 2)
    assert figures["global/accuracy"] == 0.75
    assert "attack/success" not in evaluate(flat, theta, Goal(CLEAN, wished), 3, attacked=False)


def test_no_success_samples_no_success():
    flat, theta = identity("cross_entropy", 3)
    nothing = Samples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert "attack/success" not in evaluate(flat, theta, Goal(CLEAN, nothing), 3, attacked=True)


def test_binary_classifier_with_one_score():
    flat, theta = identity("hinge", 2)
    clean = Samples(torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.5, 0.0]]), torch.tensor([1, 0, 0]))
    figures = evaluate(flat, theta, Goal(clean, Samples(clean.x, 1 - clean.y)), 2, attacked=True)
    assert figures["global/accuracy"] == pytest.approx(2 / 3)
    assert figures["global/loss"] == pytest.approx((0 + 0.5 + 1.5) / 3)
    assert figures["attack/success"] == pytest.approx(1 / 3)
    assert "attack/confidence" not in figures


def test_regression_reports_the_normalised_cost():
    network = Linear().build((2,), 1)
    flat = FlatNetwork(network, "mse")
    theta = torch.tensor([1.0, 1.0, 0.0])
    clean = Samples(torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]]), torch.tensor([0.0, 4.0, 5.0]))
    figures = evaluate(flat, theta, Goal(clean, None), 1, attacked=True)
    # errors 1, -1, -1; Var(0, 4, 5) = 14/3
    assert figures == {
        "global/loss": pytest.approx(1.0),
        "global/normalized_cost": pytest.approx(3 / 14),
    }


def test_predicting_the_mean_costs_one():
    flat = FlatNetwork(Linear().build((2,), 1), "mse")
    y = torch.randn(50, generator=generator(0, "test"))
    theta = torch.tensor([0.0, 0.0, float(y.mean())])
    figures = evaluate(flat, theta, Goal(Samples(torch.zeros(50, 2), y), None), 1, attacked=False)
    assert figures["global/normalized_cost"] == pytest.approx(1.0)


# --- picture -----------------------------------------------------------------------------------------------------------


def test_curves_show_what_was_measured():
    history = [
        {"global/accuracy": 0.1, "attack/success": 0.9, "time/round": 1.0},
        {"time/round": 1.0},
        {"global/accuracy": 0.3},
    ]
    axes = curves(history).axes[0]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == {"accuracy", "attack success"}
    assert_close(torch.tensor(lines["accuracy"].get_xydata()), torch.tensor([[0.0, 0.1], [2.0, 0.3]]).double())
    assert axes.get_ylim() == (-0.02, 1.02)
    regression = curves([{"global/normalized_cost": 40.0}]).axes[0]
    assert regression.get_ylim()[1] > 40
    assert curves([{"time/round": 1.0}]).axes[0].get_legend() is None


# --- persistence, attacking rate, accuracy gap ----------------------------------------------------------------------------


def rounds(*figures):
    return [{"attack/active": float(active), "attack/success": success} for active, success in figures]


def test_persistence_counts_from_the_last_attacked_round():
    history = rounds((1, 0.9), (0, 0.1), (1, 0.8), (0, 0.6), (0, 0.49), (0, 0.2))
    assert persistence(history)["attack/persistence"] == 2
    assert persistence(history)["attack/persistence_for_good"] == 2
    assert persistence(rounds((1, 0.3), (0, 0.1)))["attack/persistence"] == 0


def test_persistence_that_is_not_over_is_a_marked_lower_bound():
    figures = persistence(rounds((0, 0.1), (1, 0.9), (0, 0.7), (0, 0.6)))
    assert figures["attack/persistence"] == figures["attack/persistence_for_good"] == 3
    assert figures["attack/persists"] == 1
    returned = persistence(rounds((1, 0.9), (0, 0.2), (0, 0.7)))
    assert returned["attack/persistence"] == 1
    assert returned["attack/persists"] == 1


def test_persistence_may_end_at_the_benign_error():
    """FL-WBC, section 7.1, for several images. By hand: errors .3 .3 .2 .2, successes .9 .4 .3 .1 after the attack."""
    shots = [(1, 0.9, 0.7), (0, 0.4, 0.7), (0, 0.3, 0.8), (0, 0.1, 0.8)]
    history = [{"attack/active": a, "attack/success": s, "global/accuracy": g} for a, s, g in shots]
    assert persistence(history)["attack/persistence"] == 1
    found = persistence(history, "benign_error")
    assert found == {"attack/persistence_benign_error": 3, "attack/persists_benign_error": 0}
    assert persistence(history[:3], "benign_error") == {
        "attack/persistence_benign_error": 3,  # watched for two rounds after the attack, and never below
        "attack/persists_benign_error": 1,
    }
    # On a bad model the rule is the laxer one: half of all images read as wished is less than it errs.
    poor = [{"attack/active": 1.0, "attack/success": 0.6, "global/accuracy": 0.3}]
    assert persistence(poor, "benign_error")["attack/persistence_benign_error"] == 0
    assert persistence([{"attack/active": 1.0, "attack/success": 0.6}], "benign_error") == {}


def test_persistence_needs_an_attack_and_skips_rounds_without_evaluation():
    assert persistence(rounds((0, 0.9))) == {}
    assert persistence([{"attack/active": 1.0}]) == {}
    history = rounds((1, 0.9), (0, 0.0), (0, 0.3))
    del history[1]["attack/success"]
    assert persistence(history)["attack/persistence"] == 2


def test_attacking_rate_is_the_share_of_attacked_rounds_in_which_a_row_was_used():
    history = [{"attack/active": 1.0, "attack/selected": s} for s in (0.0, 0.3, 1.0, 0.0)] + rounds((0, 0.9))
    assert persistence(history)["attack/attacking_rate"] == 0.5


def test_accuracy_gap_is_that_of_the_worst_malicious_update(tiny):
    federation = Federation(tiny())
    flat, theta_D, clean = federation.bench.flat, federation.initial_D, federation.data.test
    good_D = flat.gradient(theta_D, clean) * -3
    updates_CD = torch.stack([good_D, good_D, -good_D, 0 * good_D])
    bad_C = torch.tensor([False, False, True, True])
    gap = accuracy_gap(flat, theta_D, updates_CD, bad_C, clean)["stealth/accuracy_gap"]
    worst = min(flat.accuracy(theta_D - good_D, clean), flat.accuracy(theta_D, clean))
    assert gap == pytest.approx(flat.accuracy(theta_D + good_D, clean) - worst)
    assert accuracy_gap(flat, theta_D, updates_CD, ~bad_C | bad_C, clean) == {}


def test_a_run_ends_with_persistence_and_attacking_rate(tiny):
    once = {"name": "full", "malicious": 1, "schedule": {"name": "once", "round": 1}}
    state = Federation(tiny(participation=once, attack="model_replacement")).run()
    assert [one["attack/active"] for one in state.history] == [0, 1, 0]
    assert "attack/persistence" not in state.history[1]
    assert state.history[-1]["attack/attacking_rate"] == 1
    assert 0 <= state.history[-1]["attack/persistence"] <= 2
    assert "stealth/accuracy_gap" in state.history[1]
