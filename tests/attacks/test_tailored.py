"""The attack tailored to a rule: golden numbers, agreement with the real rule, and an oracle that scans the ray."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators import Aggregator, Bulyan, GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean
from fl_lightning.attacks import AgrTailored, MinMax, min_max, perturbation
from fl_lightning.attacks._agr_tailored import against_selection, displacement
from fl_lightning.attacks._ray import ray
from fl_lightning.attacks._rehearsed_rule import RehearsedRule, fitted
from fl_lightning.attacks._selection import largest_accepted, selected, selection_geometry
from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator
from fl_lightning.testing.attacks import play

F64 = torch.float64
KINDS = ("unit", "sign", "std")
seeds = st.integers(0, 999)
ROWS = torch.tensor(
    [[1, 2, -1, 0], [2, 1, -1, 1], [1, 1, -2, 0], [2, 2, 0, -1], [0, 1, -1, 1], [3, 2, -2, 0.5]], dtype=F64
)
MEAN = ROWS.mean(0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=F64)


def server(rule: Aggregator, rows: torch.Tensor = ROWS, copies: int = 2) -> RehearsedRule:
    return RehearsedRule(rule, rows, None, torch.arange(len(rows) + copies) % 3 == 1)


def places(rows: int, copies: int, seed: int) -> torch.Tensor:
    crafted = torch.zeros(rows + copies, dtype=torch.bool)
    crafted[torch.randperm(rows + copies, generator=generator(seed, "places"))[:copies]] = True
    return crafted


def tailored(rule: Aggregator, kind: str, aim: str = "distance"):
    direction = perturbation(ROWS, kind)
    known = RehearsedRule(rule, ROWS, None, torch.arange(8) < 2)
    return against_selection(
        known, MEAN, direction, min_max(ROWS, direction), lambda update: displacement(update, MEAN, aim)
    )


@pytest.mark.parametrize(
    ("rule", "kind", "gamma"),
    [
        (MultiKrum(n_byzantine=2), "unit", 2.90121),
        (MultiKrum(n_byzantine=2), "std", 2.09333),
        (Krum(n_byzantine=2), "unit", 1.94644),
    ],
)
def test_selection_golden(rule, kind, gamma):
    found = tailored(rule, kind)
    assert found.found
    assert found.gamma == pytest.approx(gamma, rel=1e-4)
    if isinstance(rule, Krum):
        assert found.value == pytest.approx(1.946440, rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "kind", "value", "gamma"),
    [
        (TrimmedMean(n_byzantine=2), "unit", 0.791667, 12.1692),
        (Median(), "unit", 0.768295, 2.4338),
        (TrimmedMean(n_byzantine=2), "std", 0.751157, 1.8058),
        (Median(), "std", 0.820738, 1.2127),
    ],
)
def test_other_rules_golden(rule, kind, value, gamma):
    direction, known = perturbation(ROWS, kind), RehearsedRule(rule, ROWS, None, torch.arange(8) < 2)
    peak = ray(
        lambda strength: displacement(known.aggregate(MEAN + strength * direction).update, MEAN, "distance"),
        min_max(ROWS, direction),
        trials=90,
    )
    assert peak.value >= 0.999 * value
    assert peak.value <= value + 1e-6
    assert peak.gamma <= 1.2 * gamma, "the smallest of those that do the most"


@settings(max_examples=40, deadline=None)
@given(benign=st.integers(5, 12), copies=st.integers(1, 3), squared=st.booleans(), seed=seeds)
@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan"])
def test_the_geometry_selects_as_the_rule_does(name, benign, copies, squared, seed):
    f = 1
    rule = {"krum": Krum, "multi_krum": MultiKrum, "bulyan": Bulyan}[name](n_byzantine=f, squared=squared)
    if benign + copies < 4 * f + 3:
        return
    rows = normal(benign, 9, seed=seed) + 0.5
    known = RehearsedRule(rule, rows, None, places(benign, copies, seed))
    base, direction = rows.mean(0), perturbation(rows, "unit")
    geometry = selection_geometry(known, base, direction)
    for gamma in (0.0, 0.4, 1.3, 4.0):
        kept = known.aggregate(base + gamma * direction).kept
        assert sorted(selected(rule, geometry.distances(gamma)).tolist()) == kept.nonzero().flatten().tolist()


@settings(max_examples=30, deadline=None)
@given(benign=st.integers(6, 14), copies=st.integers(1, 4), seed=seeds)
@pytest.mark.parametrize("kind", KINDS)
def test_krum_selects_what_is_found_and_nothing_much_farther(kind, benign, copies, seed):
    rows = normal(benign, 20, seed=seed) + 0.3
    rule = Krum(n_byzantine=min(copies, (benign + copies - 3) // 2))
    known = RehearsedRule(rule, rows, None, places(benign, copies, seed))
    base, direction = rows.mean(0), perturbation(rows, kind)
    found = against_selection(known, base, direction, min_max(rows, direction), lambda update: 0.0)
    if found.found:
        kept = known.aggregate(base + found.gamma * direction).kept
        assert bool(kept[known.crafted_C].any())
        if 0 < found.gamma < 60 * min_max(rows, direction):
            kept = known.aggregate(base + found.gamma * (1 + 1e-4) * direction).kept
            assert not bool(kept[known.crafted_C].any())


def test_fewer_copies_are_kept_where_not_all_can_be():
    rows = torch.cat([torch.zeros(5, 3, dtype=F64), 50 + normal(2, 3)])  # a tight crowd that refuses any third guest
    known = RehearsedRule(MultiKrum(n_byzantine=2, m=6), rows, None, torch.arange(9) >= 7)
    found = against_selection(known, rows.mean(0), perturbation(rows, "unit"), 1.0, lambda update: 1.0)
    kept = known.aggregate(rows.mean(0) + found.gamma * perturbation(rows, "unit")).kept
    assert found.found
    assert 1 <= int(kept[7:].sum()) <= 2


@pytest.mark.parametrize(
    ("border", "expected"), [(0.4, 0.4), (1.0, 1.0), (37.0, 37.0), (1000.0, 64.0), (0.001, 0.001), (0.0, 0.0)]
)
def test_the_largest_accepted(border, expected):
    found, trials = largest_accepted(lambda gamma: gamma <= border, 1.0)
    assert found == pytest.approx(expected, rel=2e-6, abs=1e-7)
    assert trials < 60


def test_nothing_accepted_and_nothing_to_search():
    assert largest_accepted(lambda gamma: False, 1.0) == (None, 8)
    assert largest_accepted(lambda gamma: True, 0.0) == (0.0, 1)
    assert largest_accepted(lambda gamma: False, 0.0) == (None, 1)


def test_displacement_by_hand():
    mean, aggregate = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])
    assert displacement(aggregate, mean, "distance") == displacement(aggregate, mean, "backward") == 5
    assert displacement(torch.tensor([6.0, 8.0]), mean, "backward") == -5
    assert displacement(torch.tensor([7.0, 1.0]), mean, "backward") == pytest.approx(0)
    assert displacement(torch.tensor([1.0, 0.0]), torch.zeros(2), "backward") == 1


def test_a_rule_is_fitted_to_fewer_rows():
    assert fitted(Krum(n_byzantine=10), 5, 2) == Krum(n_byzantine=1)
    assert fitted(Krum(n_byzantine=10), 9, 2) == Krum(n_byzantine=2)
    assert fitted(Krum(n_byzantine=1), 2, 1) is None
    assert fitted(MultiKrum(n_byzantine=3, m=9), 7, 2) == MultiKrum(n_byzantine=2, m=5)
    assert fitted(TrimmedMean(fraction=0.2), 5, 1) == TrimmedMean(fraction=0.2)
    assert fitted(Mean(), 1, 1) == Mean()


def test_the_search_sees_the_weights_and_places_of_the_real_server():
    """The aggregate that the attack foresees is the one that the server makes."""
    for rule in (Krum(n_byzantine=1), MultiKrum(n_byzantine=1), TrimmedMean(n_byzantine=1), GeometricMedian()):
        played = play(AgrTailored(knowledge="full"), n_malicious=2, aggregator=rule)
        assert played.metrics["attack/found"] == 1
        weights = torch.arange(8.0) + 20
        aggregate = rule(played.submitted_CD, weights)
        benign = played.honest_CD[~played.malicious_C].mean(0)
        bystander = play(MinMax(knowledge="full"), n_malicious=2, aggregator=rule)
        other = rule(bystander.submitted_CD, weights)
        assert displacement(aggregate.update, benign, "backward") >= displacement(other.update, benign, "backward")
        if isinstance(rule, Krum | MultiKrum):
            assert bool(aggregate.kept[played.malicious_C].any())


def test_it_breaks_krum_where_min_max_does_not_move_it_as_far():
    scene = {
        "data": {"name": "digits", "train_samples": 600, "test_samples": 200},
        "rounds": 8,
        "partition": {"name": "iid", "clients": 10},
        "model": {"name": "mlp", "hidden": [16]},
        "client": {"steps": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.2}},
        "participation": {"name": "full", "malicious": 2},
        "aggregator": {"name": "krum", "n_byzantine": 2},
    }
    honest = Federation(load(scene)).run().history[-1]["global/accuracy"]
    attack = {"name": "agr_tailored", "knowledge": "full"}
    history = Federation(load(scene | {"attack": attack})).run().history
    assert min(figures["attack/selected"] for figures in history) == 1
    assert history[-1]["global/accuracy"] < honest - 0.2
