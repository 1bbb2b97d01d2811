"""Certificates: bounds against exact sums and brute force, what the theorems do not cover, and both commands on digits."""

import json
from typing import Any

import pytest
import torch
from scipy import stats

from fl_lightning.certificates import (
    Backdoor,
    certified_accuracy,
    certified_radii,
    certify_smoothed,
    certify_votes,
    linear_softmax_lipschitz,
    probability_bounds,
)
from fl_lightning.cli import main
from fl_lightning.config import load
from fl_lightning.defenses import Crfl
from fl_lightning.errors import ConfigError
from fl_lightning.participation import Full, Group


def test_groups_are_disjoint_and_keep_their_members():
    everybody = []
    for group in range(4):
        participation = Group(groups=4, group=group, malicious=3)
        participation.check(10)
        members = {tuple(participation.sample(round, 10, seed=2).clients.tolist()) for round in range(5)}
        assert len(members) == 1
        everybody += [*members.pop()]
        assert participation.malicious_clients(10, 2).tolist() == Full(malicious=3).malicious_clients(10, 2).tolist()
    assert sorted(everybody) == list(range(10))
    half = Group(groups=2, group=1, fraction=0.5)
    drawn = {tuple(half.sample(round, 12, 0).clients.tolist()) for round in range(20)}
    inside = set(Group(groups=2, group=1).sample(0, 12, 0).clients.tolist())
    assert len(drawn) > 1
    assert all(len(clients) == 3 and set(clients) <= inside for clients in drawn)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"groups": 3, "group": 3}, "less than groups, 3"), ({"groups": 11, "group": 0}, "number of clients, 10, got 11")],
)
def test_impossible_groups_are_refused(fields: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        load(
            {"data": "digits", "partition": {"clients": 10, "name": "iid"}, "participation": {"name": "group"} | fields}
        )


def test_certified_accuracy_counts_what_is_right_and_withstands():
    labels, withstood = torch.tensor([1, 0, 2, 2]), torch.tensor([2, 0, 1, 2])
    assert certified_accuracy(labels, withstood, torch.tensor([1, 0, 2, 0]), 5) == (0.75, 0.5, 0.25)


def test_the_bounds_hold_as_often_as_promised():
    """Exact: with a probability p of the first class, the chance of counts from which the bound exceeds p."""
    copies, alpha = 60, 0.05
    counts = torch.arange(copies + 1)
    _, low, high = probability_bounds(torch.stack([counts, copies - counts], 1), alpha)
    for p in (0.5, 0.7, 0.9, 0.99):
        weight = torch.from_numpy(stats.binom.pmf(counts.numpy(), copies, p))
        first = torch.where(counts >= copies - counts, p, 1 - p)  # true probability of the class that won
        wrong = (low > first) | (high < 1 - first)
        assert float(weight[wrong].sum()) <= alpha
    label, low, high = probability_bounds(torch.tensor([[20, 20, 20]]), alpha)
    assert label.tolist() == [0]
    assert float(low) < float(high)


def sharpest(rho: float, norm: float, generator: torch.Generator) -> float:
    """Largest difference quotient of the gradient of a linear softmax model's loss that a search sees.

    The search is one among inputs that the model cannot tell apart and that move straight to where it can.
    """
    worst = 0.0
    for _ in range(60):
        towards, side = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=torch.float64))[0].T
        between = torch.randn(3, generator=generator, dtype=torch.float64)
        weight = torch.outer(between - between.mean(), towards)
        weight *= rho / weight.norm()
        a, b = norm * side, norm * side + 1e-3 * towards
        label = torch.nn.functional.one_hot(torch.randint(3, (), generator=generator), 3)
        gradients = [torch.outer((weight @ x).softmax(0) - label, x) for x in (a, b)]
        worst = max(worst, float((gradients[0] - gradients[1]).norm() / (a - b).norm()))
    return worst


def test_the_constant_bounds_every_difference_quotient():
    generator = torch.Generator().manual_seed(0)
    assert linear_softmax_lipschitz(3.0) == pytest.approx((2 + 6 + 9) ** 0.5)
    for rho, norm in ((0.5, 1.0), (3.0, 1.0), (3.0, 8.0)):
        found, bound = sharpest(rho, norm, generator), linear_softmax_lipschitz(rho, norm)
        assert 0.2 * bound < found < bound
    assert sharpest(3.0, 8.0, generator) > linear_softmax_lipschitz(3.0), "the printed constant holds for norms up to 1"


def test_radii_are_those_of_the_theorem():
    low, high = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.05, 0.2, 0.4])
    backdoor = Backdoor(2, ((1 / 20, 10.0, 30.0, 0.01, 0.05), (1 / 20, 5.0, 10.0, 0.02, 0.1)))
    crfl, rounds = Crfl(rho0=0.5, rho_slope=0.1, sigma=0.6), 6
    shrinking = 1.0
    for t in (3, 4, 5):
        shrinking *= 2 * stats.norm.cdf((0.5 + 0.1 * t) / 0.6) - 1
    reach = (10 * 30 * 0.01 * 0.05 / 20) ** 2 + (5 * 10 * 0.02 * 0.1 / 20) ** 2
    rho = 0.5 + 0.2
    scale = 2 * 2 * (2 + 2 * rho * 4 + (rho * 4) ** 2) * reach * shrinking
    expected = [
        (-torch.log(1 - (a.sqrt() - b.sqrt()) ** 2) * 0.36 / scale).sqrt().item() if a > b else 0.0
        for a, b in zip(low.double(), high.double(), strict=True)
    ]
    assert certified_radii(low, high, backdoor, crfl, rounds, 4.0).tolist() == pytest.approx(expected)
    assert expected[0] > expected[1] > expected[2] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"defenses.crfl": "norm_bound"}, "needs crfl and no other defense, got norm_bound"),
        ({"aggregator": "median"}, "that of the mean, got median"),
        ({"server.lr": 0.5}, "plain step"),
        ({"client.optimizer.momentum": 0.9}, "plain SGD"),
        ({"participation": {"name": "fraction", "fraction": 0.5}}, "everybody in every round"),
        ({"attack": "sign_flip"}, "model_replacement with a boost"),
        ({"participation.schedule": {"name": "always"}}, "attack once"),
        ({"model.hidden": [4]}, "linear softmax model"),
        ({"seeds": [0, 1]}, "one seed"),
    ],
)
def test_what_the_theorem_does_not_cover_is_refused(change: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        certify_smoothed(load("digits_certified").override(change))


def test_impossible_ensembles_are_refused():
    experiment = load("digits").override({"aggregator": "mean"})
    with pytest.raises(ConfigError, match="from 2 to the number of clients, 10, got 11"):
        certify_votes(experiment, 11)
    assert main(["certify", "digits"]) == 2


@pytest.mark.slow
def test_votes_on_digits(store_folder: Any, capsys: pytest.CaptureFixture[str]):
    """Clear votes withstand what an attack in two of the groups does, and a second call trains nothing again."""
    words = ["certify", "digits", "--groups", "5", "--json", "aggregator=mean", "rounds=8", "client.optimizer.lr=0.3"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    certified, (malicious, groups, accuracy, broken) = found["certified"], found["attacked"]
    assert certified == sorted(certified, reverse=True)
    assert certified[0] > max(certified[1], 0.7)
    assert certified[1] > 0.3
    assert malicious == 2
    assert 1 <= groups <= 2
    assert accuracy >= certified[2]
    assert broken == 0
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


@pytest.mark.slow
def test_smoothing_on_digits(store_folder: Any):
    """More noise certifies larger patterns of fewer samples; a larger boost smaller ones."""
    experiment = load("digits_certified")
    found = certify_smoothed(experiment)
    assert found.certified[0] == found.accuracy > 0.6
    assert list(found.certified) == sorted(found.certified, reverse=True)
    boosted = certify_smoothed(experiment.override({"attack.boost": 10.0}))
    assert boosted.accuracy == found.accuracy
    assert boosted.radii[-1] == pytest.approx(found.radii[-1] / 10)
    quiet = certify_smoothed(experiment.override({"defenses.crfl.sigma": 0.01}))
    assert quiet.accuracy > found.accuracy
    assert quiet.radii[-1] < found.radii[-1]
