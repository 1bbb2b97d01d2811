"""Covert model poisoning: golden numbers, the closed form, the rehearsed Krum, the feedback, and its claims."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators import krum_scores, mean
from fl_lightning.attacks import Cmp
from fl_lightning.attacks._cmp_blind import adopted, next_step
from fl_lightning.attacks._cmp_krum import Rehearsal, constrained_descent, radius_squared, shrink_until, toward
from fl_lightning.attacks._cmp_mean import estimated_benign_sum, replacement
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.registry import registry

F64 = torch.float64
seeds = st.integers(0, 2**32 - 1)


def rows(*values):
    return torch.tensor(values, dtype=F64)


def copies(generator, count, dim, eps):
    noise = torch.randn(count, dim, generator=generator, dtype=F64)
    noise *= eps / noise.norm(dim=1, keepdim=True)
    noise[0] = 0
    return noise


# Theorem 1

BENIGN = rows([1, 2, 3], [3, 2, 1], [2, 2, 2])
OWN = rows([1, 1, 1], [3, 1, 2])
TARGET = torch.tensor([10.0, -4.0, 0.0], dtype=F64)


def test_theorem_1_full_knowledge_golden():
    crafted = replacement(TARGET, 0.2 * BENIGN.sum(0), 0.4)
    assert torch.allclose(crafted, rows([22, -13, -3])[0])
    assert torch.allclose(mean(torch.cat([BENIGN, crafted.expand(2, -1)])), TARGET)


def test_theorem_1_partial_knowledge_golden():
    crafted = replacement(TARGET, estimated_benign_sum(OWN, torch.ones(2), 0.4), 0.4)
    assert torch.allclose(crafted, rows([22, -11.5, -2.25])[0])
    own_sum = 0.2 * OWN.sum(0)
    assert torch.allclose(crafted, (TARGET + (1 - 1 / 0.4) * own_sum) / 0.4)

    def residual(row):
        return float((mean(torch.cat([BENIGN, row.expand(2, -1)])) - TARGET).square().sum())

    assert residual(crafted) == pytest.approx(0.45)
    assert residual(crafted) == pytest.approx(0.36 * float((BENIGN.mean(0) - OWN.mean(0)).square().sum()))
    as_printed = (TARGET + (2 / 0.4 - 1) * own_sum) / 0.4
    assert torch.allclose(as_printed, rows([33, -6, 6])[0])
    assert residual(as_printed) == pytest.approx(40.16)
    assert (2 / 0.4 - 1) ** 2 * float(own_sum.square().sum()) == pytest.approx(18.56)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, benign=st.integers(1, 8), crafted=st.integers(1, 5), dim=st.integers(1, 6))
def test_aggregate_is_the_target_for_unequal_weights(seed, benign, crafted, dim):
    g = torch.Generator().manual_seed(seed)
    benign_BD = torch.randn(benign, dim, generator=g, dtype=F64)
    weights_C = torch.randint(1, 1000, (benign + crafted,), generator=g).to(F64)
    shares_C = weights_C / weights_C.sum()
    target_D = torch.randn(dim, generator=g, dtype=F64)
    row_D = replacement(target_D, shares_C[:benign] @ benign_BD, float(shares_C[benign:].sum()))
    aggregate = mean(torch.cat([benign_BD, row_D.expand(crafted, -1)]), weights_C)
    assert torch.allclose(aggregate, target_D, atol=1e-9)


# Theorem 2 and the constraints

CLOUD = rows([0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [1, 1, 1])
AIM = torch.tensor([4.0, 4.0, -1.0], dtype=F64)


@pytest.mark.parametrize(
    ("squared", "bound", "radius", "start", "edge"),
    [
        (False, 3 * math.sqrt(3), 4.804044, (2.070567, 2.070567, -0.092032), 0.57470),
        (True, 9.0, 2.57995, (1.677673, 1.677673, 0.09286), 0.46752),
    ],
)
def test_theorem_2_golden(squared, bound, radius, start, edge):
    eps = 0.01
    rehearsal = Rehearsal(CLOUD, rows([0, 0, 0], [eps, 0, 0]), 2, squared=squared)
    assert rehearsal.n == 2
    assert rehearsal.bound == pytest.approx(bound)
    assert rehearsal.slack == pytest.approx(eps**2 if squared else eps)
    r2 = radius_squared(CLOUD, rehearsal.bound, rehearsal.slack, rehearsal.n, squared=squared)
    assert r2 == pytest.approx(radius, abs=1e-5)
    begin_D = toward(CLOUD.mean(0), AIM, math.sqrt(r2))
    assert torch.allclose(begin_D, torch.tensor(start, dtype=F64), atol=1e-5)
    assert rehearsal.near_enough(begin_D)

    twins = Rehearsal(CLOUD, torch.zeros(2, 3, dtype=F64), 2, squared=squared)
    along = [CLOUD.mean(0) + (edge + step) * (AIM - CLOUD.mean(0)) for step in (-2e-5, 2e-5)]
    assert [twins.selected(point) for point in along] == [True, False]


def test_theorem_2_as_printed_has_no_scale():
    variance = float((CLOUD - CLOUD.mean(0)).square().sum(1).mean())
    assert variance == pytest.approx(1.92)
    bound, eps = 3 * math.sqrt(3), 0.01
    assert -variance + bound - 1 / 2 - eps == pytest.approx(2.766152, abs=1e-6)
    assert -variance + 2 / 5 * (bound - 1 / 2 - eps) == pytest.approx(-0.045539, abs=1e-6)
    assert -variance + 2 / 5 * (bound - 2 / 2 - eps) == pytest.approx(-0.245539, abs=1e-6)


def test_start_never_overshoots_the_target():
    assert torch.equal(toward(CLOUD.mean(0), AIM, 100.0), AIM)
    assert torch.equal(toward(CLOUD.mean(0), AIM, math.inf), AIM)


@settings(max_examples=80, deadline=None)
@given(
    seed=seeds,
    crafted=st.integers(1, 4),
    spare=st.integers(1, 8),
    squared=st.booleans(),
    outlier=st.sampled_from([1.0, 10.0]),
)
def test_every_point_within_the_radius_satisfies_the_simplified_constraint(seed, crafted, spare, squared, outlier):
    g = torch.Generator().manual_seed(seed)
    benign = crafted + 2 + spare  # C > 2f + 2 with f = M
    scale = 10 ** float(2 * torch.rand((), generator=g) - 1)
    benign_BD = scale * torch.randn(benign, 5, generator=g, dtype=F64)
    benign_BD[0] *= outlier
    rehearsal = Rehearsal(benign_BD, copies(g, crafted, 5, 1e-3 * scale), crafted, squared=squared)
    centre_D, radius = rehearsal.ball()
    direction_D = torch.randn(5, generator=g, dtype=F64)
    for share in (0.0, 0.5, 1 - 1e-9):
        assert rehearsal.near_enough(centre_D + share * radius * direction_D / direction_D.norm())
    assert radius > 0


@settings(max_examples=80, deadline=None)
@given(seed=seeds, crafted=st.integers(1, 5), f=st.integers(1, 5), squared=st.booleans(), repeat=st.booleans())
def test_the_rehearsal_is_the_servers_krum(seed, crafted, f, squared, repeat):
    g = torch.Generator().manual_seed(seed)
    n_benign = max(2 * f + 3 - crafted, 3) + 2
    benign_ND = torch.randn(3 if repeat else n_benign, 4, generator=g, dtype=F64) + 5
    copies_B = torch.arange(n_benign) % 3 if repeat else None
    offsets_MD = copies(g, crafted, 4, 0.1)
    rehearsal = Rehearsal(benign_ND, offsets_MD, f, squared=squared, copies_B=copies_B)
    candidate_D = benign_ND.mean(0) + torch.rand((), generator=g) * torch.randn(4, generator=g, dtype=F64)
    seen_CD = torch.cat([candidate_D + offsets_MD, benign_ND if copies_B is None else benign_ND[copies_B]])
    scores_C = krum_scores(seen_CD, f, squared=squared)
    margin = float(scores_C[crafted:].min() - scores_C[:crafted].min())
    if abs(margin) > 1e-9:
        assert rehearsal.selected(candidate_D) == (margin > 0)
    ratio = float(scores_C[:crafted].min() / scores_C[crafted:].min())
    for tightened in (0.03, 0.2):
        if abs(ratio - (1 - tightened)) > 1e-9:
            assert rehearsal.selected(candidate_D, tightened) == (ratio < 1 - tightened)


def test_the_simplified_constraint_is_not_sufficient():
    """Crafted rows are neighbours of benign ones, too: eq. 13 accepts points that Krum rejects."""
    g = torch.Generator().manual_seed(0)
    benign_BD = torch.randn(12, 3, generator=g, dtype=F64)
    rehearsal = Rehearsal(benign_BD, torch.zeros(4, 3, dtype=F64), 4, squared=True)
    points = 1.5 * torch.randn(300, 3, generator=g, dtype=F64)
    near = [p for p in points if rehearsal.near_enough(p)]
    assert 0 < sum(rehearsal.selected(p) for p in near) < len(near)


# The descent


def test_descent_stays_feasible_and_ends_on_the_constraint():
    target_D = torch.tensor([10.0, 0.0], dtype=F64)
    found = constrained_descent(
        torch.zeros(2, dtype=F64), lambda x: x - target_D, lambda x: bool(x.norm() <= 1), eta=1.0, stop=1 / 1024
    )
    assert found.feasible
    assert 0.98 < float(found.point_D.norm()) <= 1
    assert found.tried == found.accepted + 11
    assert found.eta == 2**-11


def test_descent_is_capped_and_keeps_an_infeasible_start():
    start_D = torch.zeros(2)
    always = constrained_descent(start_D, torch.ones_like, lambda x: True, eta=1.0, cap=7)
    assert (always.accepted, always.tried, always.eta) == (7, 7, 1.0)
    never = constrained_descent(start_D, torch.ones_like, lambda x: False, eta=1.0)
    assert not never.feasible
    assert never.accepted == 0
    assert torch.equal(never.point_D, start_D)
    assert float(shrink_until(lambda x: bool(x.norm() < 1), torch.tensor([4.0, 0]), start_D).norm()) < 1


# Algorithm 2


def test_feedback_recognises_adoption():
    before, uploaded = torch.zeros(3), torch.tensor([2.0, 0, 0])
    assert adopted(uploaded, before, uploaded, 0.1, 0.0)
    assert adopted(uploaded, before, torch.tensor([0.5, 0, 0]), 1.0, 0.0)
    assert not adopted(uploaded, before, torch.tensor([0.5, 0, 0]), 0.5, 0.0)
    assert not adopted(uploaded, before, torch.tensor([0.0, 1, 0]), 1.0, 0.0)


@pytest.mark.parametrize("caution", [1.0, 4.0, 9.0])
def test_step_settles_where_a_share_of_the_rounds_are_hits(caution):
    eta, hits = 0.1, 0
    for _ in range(2000):
        hit = eta < 1.0
        hits += hit
        eta = next_step(eta, hit, 1.05, caution)
    assert hits / 2000 == pytest.approx(caution / (1 + caution), abs=0.03)


# In a federation


def federation(attack, seed=0, rounds=3, **changes):
    tree = {
        "seed": seed,
        "rounds": rounds,
        "data": "digits",
        "partition": {"name": "degree", "clients": 12, "p": 0.5},
        "model": {"name": "mlp", "hidden": [16]},
        "client": {"steps": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
        "participation": {"name": "full", "malicious": 3},
        "aggregator": {"name": "krum", "n_byzantine": 3},
        "engine": "vectorized",
        "attack": {"name": "cmp", "batch": 200, **attack},
    }
    return Federation(load(tree | changes))


@pytest.mark.parametrize("objective", ["label_map", "untargeted", "trigger", "target_samples"])
def test_full_knowledge_replaces_the_mean_exactly(objective):
    uneven = {"name": "quantity", "clients": 12}
    fed = federation(
        {"knowledge": "full", "objective": {"name": objective}}, partition=uneven, aggregator="mean", server={"lr": 0.5}
    )
    fed.run()
    designated_D = fed.state.attack["designated_D"]
    assert float((fed.state.global_D - designated_D).abs().max()) < 1e-5
    assert float((designated_D - fed.initial_D).norm()) > 0.1


def test_partial_knowledge_comes_close_to_the_designated_model():
    fed = federation({"knowledge": "partial"}, aggregator="mean", server={"lr": 0.5})
    fed.run()
    designated_D = fed.state.attack["designated_D"]
    assert 0 < float((fed.state.global_D - designated_D).norm()) < 0.5 * float((designated_D - fed.initial_D).norm())


@pytest.mark.parametrize("knowledge", ["full", "partial"])
@pytest.mark.parametrize("start", ["centroid", "global", "theorem2"])
@pytest.mark.parametrize("constraint", ["original", "simplified"])
def test_krum_variants_run_and_log(knowledge, start, constraint):
    fed = federation({"knowledge": knowledge, "start": start, "constraint": constraint, "proxies": "scaled"}, rounds=1)
    metrics = fed.round().metrics
    expected = {"accepted", "tried", "eta", "feasible", "norm", "distance", "radius"}
    assert {f"attack/{name}" for name in expected} <= metrics.keys()
    assert ("designated_D" in fed.state.attack) == (start == "theorem2")


@pytest.mark.parametrize("squared", [True, False])
def test_full_knowledge_is_always_selected_by_krum(squared):
    fed = federation({"knowledge": "full"}, rounds=5, aggregator={"name": "krum", "n_byzantine": 3, "squared": squared})
    reports = [fed.round().metrics for _ in range(5)]
    assert [m["attack/selected"] for m in reports] == [1.0] * 5
    assert all(m["attack/feasible"] == 1.0 for m in reports)


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"knowledge": "full"}, 0.0),
        ({"knowledge": "full", "constraint": "simplified"}, 0.05),
        ({"knowledge": "partial"}, 0.03),
        ({"knowledge": "partial", "constraint": "simplified"}, 0.05),
        ({"knowledge": "partial", "margin": 0.0, "relax": 1.0, "tighten": 0.02}, 0.0),
        ({"knowledge": "partial", "loosen": 0.2}, 0.03),
    ],
)
def test_the_margin_follows_what_the_server_adopted(settings, first):
    """Fed back with partial knowledge only; the hits are read off the broadcast models and are the true ones."""
    fed = federation(settings, rounds=12, aggregator={"name": "krum", "n_byzantine": 3, "squared": False})
    fed.run()
    history, attack = fed.state.history, fed.experiment.attack
    assert history[0]["attack/margin"] == first
    for before, now in pairwise(history):
        margin = before["attack/margin"]
        if settings["knowledge"] == "partial":
            assert now["attack/hit"] == (before["attack/selected"] > 0)
            relaxed = max(-0.5, (attack.relax if margin > 0 else 1) * margin - attack.loosen)
            margin = relaxed if now["attack/hit"] else margin + attack.tighten
        assert now["attack/margin"] == pytest.approx(margin)
    if settings.get("loosen"):
        assert min(figures["attack/margin"] for figures in history) < 0
        assert any(not figures["attack/selected"] for figures in history), "until rows are refused now and then"


@pytest.mark.parametrize("rule", ["multi_krum", "bulyan", "trimmed_mean", "median", "geometric_median"])
def test_survives_other_rules(rule):
    fields = {"n_byzantine": 2} if rule in ("multi_krum", "bulyan", "trimmed_mean") else {}
    fed = federation({"knowledge": "full"}, rounds=2, aggregator={"name": rule, **fields})
    fed.run()
    assert fed.state.stopped is None
    assert ("attack/radius" in fed.state.history[0]) == (rule in ("multi_krum", "bulyan"))


@pytest.mark.parametrize("feedback", ["printed", "calm"])
def test_blind_step_follows_what_the_server_adopted(feedback):
    fed = federation({"feedback": feedback, "blind_eta": 0.5}, rounds=6)
    fed.run()
    caution = 9.0 if feedback == "calm" else 1.0
    etas = [h["attack/eta"] for h in fed.state.history]
    assert etas[0] == 0.5
    assert "attack/hit" not in fed.state.history[0]
    for before, now in zip(fed.state.history, fed.state.history[1:], strict=False):
        assert now["attack/hit"] == (before["attack/selected"] > 0)
        assert now["attack/eta"] == pytest.approx(before["attack/eta"] * 1.03 ** (1 if now["attack/hit"] else -caution))


def test_one_malicious_client_partial_participation_and_a_smaller_f():
    fed = federation(
        {"knowledge": "partial"},
        participation={"name": "k_of_n", "k": 9, "malicious": 2},
        aggregator={"name": "krum", "n_byzantine": 1},
    )
    fed.run()
    assert fed.state.stopped is None


@pytest.mark.parametrize("attack", [{"knowledge": "none"}, {"knowledge": "partial", "start": "theorem2"}])
def test_resumes_exactly(attack):
    whole = federation(attack)
    whole.run()
    first, second = federation(attack), federation(attack)
    first.round()
    second.load_state_dict(first.state_dict())
    second.run()
    assert torch.equal(whole.state.global_D, second.state.global_D)


@pytest.mark.parametrize(("data", "model", "lr"), [("mnist_parity", "svm", 0.02), ("house_prices", "linear", 0.005)])
def test_loss_ascent_against_svm_and_regression(data, model, lr):
    tree = {
        "rounds": 1,
        "fast": True,
        "data": data,
        "model": model,
        "partition": {"name": "degree", "clients": 12, "p": 0.5},
        "client": {"steps": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": lr}},
        "participation": {"name": "full", "malicious": 3},
        "aggregator": {"name": "krum", "n_byzantine": 3},
        "attack": "cmp_untargeted",
    }
    attacked = Federation(load(tree)).round().metrics
    powerless = Federation(load(tree, ["attack.eta=1e-12"])).round().metrics
    assert attacked["attack/selected"] == powerless["attack/selected"] == 1.0
    assert attacked["global/loss"] > powerless["global/loss"] + 0.01


def test_fields_are_checked():
    with pytest.raises(ConfigError, match="decay"):
        registry("attack").build({"name": "cmp", "decay": 1.0})
    with pytest.raises(ConfigError, match="smallest <= largest"):
        registry("attack").build({"name": "cmp", "reach": [2.0, 1.0]})
    assert replace(registry("attack").build("cmp_blind"), objective=Cmp().objective) == Cmp()


# Claims, on real MNIST


def mnist(attack, rounds, aggregator, seed=0):
    tree = {
        "seed": seed,
        "rounds": rounds,
        "data": "mnist",
        "client": {"steps": 10, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.05}},
        "participation": {"name": "full", "malicious": 10},
        "aggregator": aggregator,
        "engine": "vectorized",
        "attack": attack,
    }
    fed = Federation(load(tree))
    fed.run()
    return fed


def tail(fed, share):
    successes = [h["attack/success"] for h in fed.state.history]
    last = successes[-max(1, int(share * len(successes))) :]
    return sum(last) / len(last)


KRUM = {"name": "krum", "n_byzantine": 10, "squared": False}


@pytest.mark.slow
def test_claim_full_knowledge_owns_krum():
    fed = mnist("cmp", 30, KRUM)
    assert tail(fed, 1 / 3) >= 0.88
    assert sum(h["attack/selected"] for h in fed.state.history) >= 0.95 * 30


@pytest.mark.slow
def test_claim_partial_knowledge():
    assert tail(mnist("cmp_partial", 50, KRUM), 1 / 3) >= 0.8
    assert tail(mnist("cmp_partial", 10, "mean"), 1 / 3) >= 0.8


@pytest.mark.slow
def test_claim_the_simplified_constraint_works_with_its_margin():
    assert tail(mnist("cmp_simplified", 70, KRUM), 1 / 3) >= 0.85


@pytest.mark.slow
def test_claim_blind_calm_holds_more_than_printed_and_other_attacks():
    calm, printed = (tail(mnist(name, 60, KRUM), 1 / 2) for name in ("cmp_blind", "cmp_blind_printed"))
    others = ("label_flip", {"name": "alternating_minimization", "objective": {"name": "label_map"}})
    assert calm > 1.5 * printed
    assert calm >= 5 * max(tail(mnist(other, 60, KRUM), 1 / 2) for other in others)


@pytest.mark.slow
def test_claim_blind_owns_a_trimmed_mean_that_trims_fewer_than_are_malicious():
    few, enough = (
        tail(mnist("cmp_blind_trimmed_mean", 60, {"name": "trimmed_mean", "n_byzantine": f}), 1 / 2) for f in (5, 10)
    )
    assert few >= 0.35
    assert enough <= 0.05
