"""Covert model poisoning: golden numbers, the closed form, the rehearsed Krum, the descent."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators import krum_scores, mean
from fl_lightning.attacks._cmp_blind import adopted, next_step
from fl_lightning.attacks._cmp_krum import Rehearsal, constrained_descent, radius_squared, shrink_until, toward
from fl_lightning.attacks._cmp_mean import estimated_benign_sum, replacement

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
