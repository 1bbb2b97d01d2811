"""Strengths searched through the server: golden numbers, against a scan of the ray, and what the search foresees."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators import Aggregator, GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean
from fl_lightning.attacks import OptimalAlie, OptimalIpm, min_max, perturbation
from fl_lightning.attacks._agr_tailored import displacement
from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator

F64 = torch.float64
ROWS = torch.tensor(
    [[1, 2, -1, 0], [2, 1, -1, 1], [1, 1, -2, 0], [2, 2, 0, -1], [0, 1, -1, 1], [3, 2, -2, 0.5]], dtype=F64
)
MEAN = ROWS.mean(0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=F64)


def view(rule: Aggregator, rows: torch.Tensor = ROWS, malicious: int = 2) -> SimpleNamespace:
    """Full knowledge of a server without defenses."""
    return SimpleNamespace(
        knowledge="full",
        n_malicious=malicious,
        n_clients=malicious + len(rows),
        benign_updates=rows,
        own_updates=rows[:malicious],
        global_D=torch.zeros(rows.shape[1], dtype=F64),
        flat=SimpleNamespace(trained=rows.shape[1]),
        generator=lambda purpose: generator(0, purpose),
        replay=lambda updates: rule(torch.cat([updates, rows])),
    )


def harm(attack, seen: SimpleNamespace, rule: Aggregator, aim: str = "distance") -> tuple[float, dict]:
    poisoned = attack.poison(seen, {})
    mean = seen.benign_updates.mean(0)
    return displacement(seen.replay(poisoned.updates).update, mean, aim), dict(poisoned.metrics)


@pytest.mark.parametrize(
    ("attack", "rule", "value"),
    [
        (OptimalAlie, TrimmedMean(n_byzantine=2), 0.791667),
        (OptimalIpm, TrimmedMean(n_byzantine=2), 0.791667),
        (OptimalAlie, Median(), 0.881917),
        (OptimalIpm, Median(), 0.768295),
        (OptimalAlie, GeometricMedian(), 0.716825),
        (OptimalIpm, GeometricMedian(), 0.596010),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_golden(attack, rule, value):
    reached, metrics = harm(attack(knowledge="full"), view(rule), rule)
    assert reached >= 0.999 * value
    assert metrics["trials"] <= 60
    if rule.name == "geometric_median":
        assert metrics["at_reach"] == 1
    else:
        assert reached <= value + 1e-6


def test_the_side_and_the_epsilon_are_reported():
    rule = TrimmedMean(n_byzantine=2)
    _, metrics = harm(OptimalAlie(knowledge="full"), view(rule), rule)
    assert metrics["direction"] == 1, "plus sigma"
    assert metrics["gamma"] == pytest.approx(1.6978, rel=0.1)
    _, metrics = harm(OptimalIpm(knowledge="full"), view(rule), rule)
    assert metrics["epsilon"] == pytest.approx(metrics["gamma"] / float(MEAN.norm()) - 1)


@pytest.mark.parametrize(
    ("attack", "kind"), [(OptimalAlie(knowledge="full", signs="minus"), "std"), (OptimalIpm(knowledge="full"), "unit")]
)
def test_a_server_that_averages_has_no_strongest(attack, kind):
    rule = Mean()
    reached, metrics = harm(attack, view(rule), rule)
    assert metrics["at_reach"] == 1
    direction = perturbation(ROWS, kind)
    assert reached == pytest.approx(2 / 8 * metrics["gamma"] * float(direction.norm()), rel=1e-6)
    assert 120 * min_max(ROWS, direction) < metrics["gamma"] < 128 * min_max(ROWS, direction)


POINTS = 60
RULES = [Krum(n_byzantine=2), MultiKrum(n_byzantine=2), TrimmedMean(n_byzantine=2), Median(), GeometricMedian()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_not_below_a_scan_of_the_ray(rule):
    """One direction: at least 0.999 of the best of a logarithmic grid over the same range, on most random problems.

    Not on all: rules that select jump, and the geometric median sticks to near copies until it breaks away from them: a narrow
    peak between two points of the scan.
    """
    held = 0
    for seed in range(10):
        rows = normal(8, 12, seed=seed) + 0.4
        seen, mean = view(rule, rows), rows.mean(0)
        reached, _ = harm(OptimalIpm(knowledge="full"), seen, rule)
        direction = perturbation(rows, "unit")
        scale = min_max(rows, direction)
        grid = torch.logspace(-6, 6, POINTS, base=2, dtype=F64) * scale
        best = max(
            displacement(seen.replay((mean + gamma * direction).expand(2, -1)).update, mean, "distance")
            for gamma in grid
        )
        held += reached >= 0.999 * best
    assert held >= (10 if isinstance(rule, TrimmedMean | Median) else 8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), fraction=st.floats(0, 3))
def test_not_below_any_fixed_strength_that_was_tried(seed, fraction):
    rows = normal(8, 10, seed=seed) + 0.3
    rule = MultiKrum(n_byzantine=2)
    seen = view(rule, rows)
    tried: list[float] = []
    replay = seen.replay
    seen.replay = lambda updates: (result := replay(updates), tried.append(away(result, rows)))[0]
    reached, _ = harm(OptimalAlie(knowledge="full"), seen, rule)
    assume(tried)
    assert reached >= max(tried) * (1 - 1e-9)


def away(result, rows: torch.Tensor) -> float:
    return displacement(result.update, rows.mean(0), "distance")


def test_backward_turns_the_aggregate_back_where_distance_may_help_the_model():
    rows = normal(8, 30, seed=4) + 0.5
    rule = Krum(n_byzantine=2)
    far, _ = harm(OptimalAlie(knowledge="full"), view(rule, rows), rule, "backward")
    back, _ = harm(OptimalAlie(knowledge="full", aim="backward"), view(rule, rows), rule, "backward")
    assert back > 0
    assert back >= far


def test_a_server_that_drops_the_attackers_gets_the_mean():
    seen = view(Mean())
    seen.replay = lambda updates: SimpleNamespace(update=MEAN)
    poisoned = OptimalIpm(knowledge="full").poison(seen, {})
    assert torch.equal(poisoned.updates, MEAN.expand(2, -1))
    assert poisoned.metrics["gamma"] == 0


# --- through a real server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server",
    [
        {"aggregator": "median", "defenses": {"clip": {"name": "norm_bound", "max_norm": 0.3}}},
        {"aggregator": {"name": "krum", "n_byzantine": 1}},
    ],
    ids=["norm bound + median", "Krum"],
)
def test_the_foreseen_aggregate_is_the_real_one(server):
    attack = {"name": "optimal_ipm", "knowledge": "full", "trials": 15}
    federation = Federation(load(SCENE | server | {"attack": attack}))
    for _ in range(2):
        before_D = federation.state.global_D.clone()
        trained = federation.protect(federation.train(federation.cohort()))
        seen = federation.view(trained)
        sent = federation.experiment.attack.poison(seen, federation.state.attack)
        foreseen_D = seen.replay(sent.updates).update
        federation.round()
        assert torch.equal(before_D + foreseen_D, federation.state.global_D)


SCENE = {
    "data": {"name": "digits", "train_samples": 300, "test_samples": 100},
    "rounds": 2,
    "partition": {"name": "iid", "clients": 7},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"steps": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.2}},
    "participation": {"name": "full", "malicious": 1},
}
