"""Crafted attacks with a memory: mimic and PoisonedFL, their golden numbers and what they promise."""

from fractions import Fraction
from itertools import pairwise
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fl_lightning.attacks import Mimic, Poisonedfl, follow_spread, poisonedfl
from fl_lightning.attacks._poisonedfl import least_agreement
from fl_lightning.config import load
from fl_lightning.federation import Federation
from fl_lightning.randomness import generator
from fl_lightning.testing.attacks import CLIENTS, ORDER, play

F64 = torch.float64
ROWS = torch.tensor(
    [[1, 2, -1, 0], [2, 1, -1, 1], [1, 1, -2, 0], [2, 2, 0, -1], [0, 1, -1, 1], [3, 2, -2, 0.5]], dtype=F64
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=F64)


def close(actual, expected, tolerance=1e-6):
    assert_close(actual, torch.tensor(expected, dtype=F64), atol=tolerance, rtol=0)


# --- mimic -------------------------------------------------------------------------------------------------------------


def test_mimic_golden():
    z = torch.full((4,), 0.5, dtype=F64)
    m, z = follow_spread(ROWS, z, z, 0)
    close(z, [0.9005, 0.35237, 0.247964, -0.058728], 1e-5)
    assert int((ROWS @ z).argmax()) == 5
    second = ROWS.flip(0) * torch.tensor([1, 0.5, 1, 2], dtype=F64)
    m, z = follow_spread(second, m, z, 1)
    close(z, [0.895712, 0.286542, 0.168683, -0.295193], 1e-5)
    assert int((second @ z).argmax()) == 2
    assert int((2 * ROWS @ z).argmax()) == 5


def test_mimic_finds_the_direction_of_largest_spread():
    away = torch.zeros(50, dtype=F64)
    away[7] = 1.0
    z, m = normal(50, seed=5), torch.zeros(50, dtype=F64)
    for round in range(12):
        rows = normal(20, 50, seed=round) + 6 * normal(20, 1, seed=100 + round) * away
        m, z = follow_spread(rows, m, z, round)
    assert abs(float(z[7])) > 0.95


def test_equal_rows_leave_the_direction_alone():
    z = normal(4)
    m, after = follow_spread(ROWS[:1].expand(3, -1), z, z, 0)
    assert torch.equal(after, z)
    assert torch.equal(m, ROWS[0])


def test_mimic_sends_a_benign_row_bit_for_bit_and_keeps_its_target():
    attack = Mimic(knowledge="full", warmup=1)
    first = play(attack)
    second = play(attack, before=first)
    for played in (first, second):
        sent, target = played.submitted_CD[played.malicious_C], int(played.metrics["attack/target"])
        assert target == first.metrics["attack/target"]
        assert target in set(range(CLIENTS)) - set(ORDER[:3])
        assert torch.equal(sent, played.honest_CD[target].expand(3, -1))


def test_mimic_takes_what_it_may_know():
    partial = play(Mimic(knowledge="partial", visible_updates=2))
    benign = partial.honest_CD[~partial.malicious_C]
    sent = partial.submitted_CD[partial.malicious_C][0]
    assert any(torch.equal(sent, row) for row in benign)
    assert partial.metrics["attack/target"] == -1
    blind = play(Mimic())
    own = blind.honest_CD[blind.malicious_C]
    assert torch.equal(blind.submitted_CD[blind.malicious_C], own[:1].expand(3, -1))


def test_fixed_and_farthest_targets():
    fixed = play(Mimic(knowledge="full", target="fixed"))
    lowest = min(set(range(CLIENTS)) - set(ORDER[:3]))
    assert fixed.metrics["attack/target"] == lowest
    far = play(Mimic(knowledge="full", target="farthest"))
    benign = far.honest_CD[~far.malicious_C]
    row = int((benign - benign.mean(0)).norm(dim=1).argmax())
    assert torch.equal(far.submitted_CD[far.malicious_C][0], benign[row])


# --- PoisonedFL ----------------------------------------------------------------------------------------------------------


def test_poisonedfl_golden():
    signs, moved = torch.tensor([1.0, -1, 1, 1], dtype=F64), torch.tensor([0.3, -0.4, 0, 1.2], dtype=F64)
    sent = torch.tensor([1.0, -2, 2, 4], dtype=F64)
    close(poisonedfl(moved, sent, signs, 8.0), [0.744759, -2.234278, 9.681873, 2.979038])


@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 50), factor=st.floats(0.1, 50), seed=st.integers(0, 999))
def test_poisonedfl_has_the_secret_signs_and_the_norm(dim, factor, seed):
    signs = normal(dim, seed=seed).sign()
    moved, sent = normal(dim, seed=seed + 1), normal(dim, seed=seed + 2)
    crafted = poisonedfl(moved, sent, signs, factor)
    assert bool(((crafted.sign() == signs) | (crafted == 0)).all())
    if crafted.any():  # in one dimension nothing may be left once the attackers' own part is taken off
        assert float(crafted.norm()) == pytest.approx(factor * float(moved.norm()), rel=1e-9)
    unsent = poisonedfl(moved, torch.zeros_like(sent), signs, factor)
    assert_close(unsent, factor * moved.abs() * signs)
    assert not poisonedfl(torch.zeros_like(moved), sent, signs, factor).any()


@pytest.mark.parametrize("trials", [1, 7, 100, 1000])
def test_the_quantile_is_exact(trials):
    total = Fraction(0)
    for agreeing in range(trials + 1):
        total += Fraction(comb(trials, agreeing), 2**trials)
        if total >= Fraction(99, 100):
            break
    assert least_agreement(trials) == agreeing


def test_the_quantile_of_the_published_models():
    assert [least_agreement(trials) for trials in (139960, 1204682)] == [70415, 603618]


SCENE = {
    "data": {"name": "digits", "train_samples": 200, "test_samples": 100},
    "rounds": 8,
    "partition": {"name": "iid", "clients": 5},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"steps": 2, "batch_size": 16},
    "participation": {"name": "full", "malicious": 2},
}


def test_under_averaging_the_model_follows_the_secret_signs_and_the_factor_stays():
    attack = {"name": "poisonedfl", "check_every": 3}
    federation = Federation(load(SCENE | {"attack": attack}))
    state = federation.run()
    moved = (state.global_D - federation.initial_D).sign()
    follows = (moved == state.attack["signs_P"])[moved != 0]  # pixels that are always black move nothing
    assert float(follows.double().mean()) > 0.95
    assert [figures["attack/factor"] for figures in state.history] == [8.0] * 8
    norms = [figures["attack/norm"] for figures in state.history[1:]]
    assert all(later > earlier for earlier, later in pairwise(norms)), "8 x 0.4 > 1: it grows"


def test_where_the_server_does_not_follow_the_factor_shrinks_to_the_floor():
    settings = {
        "attack": {"name": "poisonedfl", "check_every": 2, "floor": 4.0},
        "aggregator": "median",
        "participation": {"name": "full", "malicious": 1},
    }
    state = Federation(load(SCENE | settings)).run()
    factors = [figures["attack/factor"] for figures in state.history]
    assert factors == pytest.approx([8, 8, 5.6, 5.6, 5.6, 5.6, 5.6, 5.6])  # 0.7 x 5.6 lies below the floor
    checks = [figures["attack/agreement"] for figures in state.history if "attack/agreement" in figures]
    assert len(checks) == 3
    assert max(checks) < 0.65  # 0.5 by chance


def test_the_signs_are_drawn_once_a_run():
    first = play(Poisonedfl())
    assert set(first.state["signs_P"].tolist()) == {-1, 1}
    assert not first.submitted_CD[first.malicious_C].any()
    assert torch.equal(play(Poisonedfl(), before=first).state["signs_P"], first.state["signs_P"])
