"""The multi-party attack: its stealth figures, the joint choice of boosts, and both against a small federation."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fl_lightning.attacks import LabelMap, MultiParty, joint_choice
from fl_lightning.attacks._multi_party import cosines, distances, widest_distance
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.metrics import stealth
from fl_lightning.randomness import generator
from fl_lightning.registry import named_config, registry
from fl_lightning.testing.attacks import play

# Two attackers with delta = (1, 1, 0) before boosting, and two benign clients.
DELTA = torch.tensor([1.0, 1.0, 0.0])
BENIGN = torch.tensor([[1.0, 0.0, 0.5], [0.8, 0.2, 0.0]])
GOLDEN = {1.0: (0.916217, 1.118034), 2.0: (0.960031, 2.291288), 4.0: (0.985042, 5.024938)}


# --- stealth figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("boost", "golden"), GOLDEN.items())
def test_cosine_and_distance_of_the_whole_boosted_update(boost, golden):
    sent_MD = (boost * DELTA).repeat(2, 1)
    found = cosines(sent_MD, torch.full((2,), 0.25), 0.25 * BENIGN.sum(0))
    assert_close(found, torch.full((2,), golden[0]), atol=1e-6, rtol=0)
    assert float(distances(DELTA, [boost], BENIGN)) == pytest.approx(golden[1], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(benign=st.integers(1, 6), malicious=st.integers(1, 4), boost=st.floats(0.5, 10), seed=st.integers(0, 99))
def test_both_agree_with_what_the_federation_reports(benign, malicious, boost, seed):
    rows_CD = torch.randn(malicious + benign, 20, generator=generator(seed, "test"))
    bad_C = torch.arange(malicious + benign) < malicious
    sent_CD = rows_CD.clone()
    sent_CD[bad_C] *= boost
    report = stealth(sent_CD, bad_C)
    share = 1 / len(sent_CD)
    found = cosines(sent_CD[bad_C], torch.full((malicious,), share), share * sent_CD[~bad_C].sum(0))
    assert float(found.mean()) == pytest.approx(report["stealth/cosine"], abs=1e-5)
    reach = max(float(distances(row, [boost], rows_CD[~bad_C])) for row in rows_CD[bad_C])
    assert reach == pytest.approx(report["stealth/l2_max"], rel=1e-5)


def test_widest_distance():
    assert widest_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])) == 5.0
    assert widest_distance(torch.tensor([[3.0, 4.0]])) == pytest.approx(5 * 2**0.5)


# --- the joint choice --------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    grids=st.lists(st.sets(st.integers(1, 10), min_size=1).map(sorted), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
    goal=st.floats(0, 30),
)
def test_no_attacker_can_improve_by_a_step(grids, weights, goal):
    def score(boosts):
        return (0.0, abs(sum(w * b for w, b in zip(weights, boosts, strict=False)) - goal))

    best = joint_choice(grids, score)
    assert all(boost in grid for boost, grid in zip(best, grids, strict=True))
    for m, grid in enumerate(grids):
        at = grid.index(best[m])
        for near in grid[max(0, at - 1) : at + 2]:
            assert score((*best[:m], near, *best[m + 1 :])) >= score(best)


def test_a_convex_score_is_minimised_over_the_whole_grid():
    grid = [1.0, 2.0, 3.0, 4.0, 5.0]

    def score(boosts):
        return (0.0, (boosts[0] - 3.2) ** 2 + (boosts[1] - 4.4) ** 2)

    assert joint_choice([grid, grid], score) == min(product(grid, grid), key=score) == (3.0, 4.0)


def test_a_failed_check_outweighs_any_objective():
    assert joint_choice([[1.0, 2.0]], lambda boosts: (max(0.0, boosts[0] - 1.5), -boosts[0])) == (1.0,)


# --- the attack in a round ---------------------------------------------------------------------------------------------

FIVES = {"objective": LabelMap(mapping={5: 7}), "knowledge": "full"}


def boosts(played) -> torch.Tensor:
    """lambda of each attacker, from what it sent with and without a free choice."""
    plain = play(MultiParty(**FIVES, grid=(1.0,), distance=None))
    bad_C = played.malicious_C
    return played.submitted_CD[bad_C].norm(dim=1) / plain.submitted_CD[bad_C].norm(dim=1)


def test_the_boost_multiplies_the_whole_update():
    assert_close(boosts(play(MultiParty(**FIVES, grid=(3.0,), distance=None))), torch.full((3,), 3.0))
    assert_close(boosts(play(MultiParty(**FIVES, grid=(3.0,), grid_factor=0.5, distance=None))), torch.full((3,), 1.5))


def test_the_printed_criterion_always_takes_the_smallest_boost():
    """Its target loss is multiplied by lambda, so that even a free choice ends at the lowest value."""
    grid = (1.0, 1.5, 2.0, 8 / 3)
    printed = MultiParty(**FIVES, grid=grid, criterion="printed", distance=None, cosine_weight=0.0)
    weighted = MultiParty(**FIVES, grid=grid, target_weight=100.0, distance=None, cosine_weight=0.0)
    assert_close(boosts(play(printed)), torch.ones(3))
    assert float(boosts(play(weighted)).mean()) > 2


def test_the_distance_bound_holds_for_visible_updates():
    grid = tuple(0.25 * i for i in range(1, 41))
    for factor in (1.2, 2.0, 4.0):
        played = play(MultiParty(**FIVES, grid=grid, distance=factor, target_weight=1e4, cosine_weight=0.0))
        bad_C, sent_CD = played.malicious_C, played.submitted_CD
        reach = float(torch.cdist(sent_CD[bad_C], sent_CD[~bad_C]).max())
        assert played.metrics["attack/reach"] == pytest.approx(reach, rel=1e-4)
        assert reach <= played.metrics["attack/threshold"]
        assert played.metrics["attack/feasible"] == 1.0


def test_what_cannot_be_kept_is_reported():
    metrics = play(MultiParty(**FIVES, grid=(20.0, 40.0), distance=0.5)).metrics
    assert metrics["attack/feasible"] == 0.0
    assert metrics["attack/lambda"] == 20.0


def test_the_accuracy_check_lowers_the_boost():
    free = MultiParty(**FIVES, target_weight=1e4, cosine_weight=0.0, distance=None)
    checked = MultiParty(**FIVES, target_weight=1e4, cosine_weight=0.0, distance=None, gamma=0.0)
    assert play(checked).metrics["attack/lambda"] <= play(free).metrics["attack/lambda"]
    assert play(checked).metrics["attack/accuracy_gap"] <= 0.0 or not play(checked).metrics["attack/feasible"]


def test_baselines_are_settings_of_the_attack():
    perfect, snal2, sanodc = (registry("attack").build(name) for name in ("multi_party_perfect", "snal2", "sanodc"))
    assert (snal2.distance, sanodc.distance) == (perfect.distance, None)
    assert {**sanodc.to_dict(), "distance": snal2.distance} == snal2.to_dict()
    assert named_config("attack", "multi_party")["visible_updates"] == 3


@pytest.mark.parametrize("grid", [(), (0.0, 1.0), (-1.0,)])
def test_grids_that_cannot_be(grid):
    with pytest.raises(ConfigError, match="grid: needs at least one boost, all above 0"):
        registry("attack").build({"name": "multi_party", "grid": list(grid)})


# --- end to end --------------------------------------------------------------------------------------------------------


def fives_as_sevens(tiny, malicious: int, **settings) -> Federation:
    federation = Federation(
        tiny(
            data={"name": "digits", "train_samples": 600},
            rounds=6,
            partition={"name": "iid", "clients": 10},
            model={"name": "mlp", "hidden": [32]},
            client={"epochs": 3, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.005}},
            participation={"name": "full", "malicious": malicious},
            attack={"name": "multi_party", "objective": {"name": "label_map", "mapping": {5: 7}}} | settings,
            engine="vectorized",
        )
    )
    federation.run()
    return federation


def test_two_of_ten_move_the_fives_and_spare_the_rest(tiny):
    last = fives_as_sevens(tiny, 2, knowledge="partial", visible_updates=3).state.history[-3:]
    success, accuracy = (sum(one[name] for one in last) / 3 for name in ("attack/success", "global/accuracy"))
    assert success > 0.75
    # Fives are a tenth of the test set: 0.9 of what is left is the ceiling.
    assert accuracy > 0.75


def test_a_single_attacker_under_the_same_bound_does_less(tiny):
    bound = {"knowledge": "full", "distance": 2.0}
    two, one = (fives_as_sevens(tiny, m, **bound).state.history[-3:] for m in (2, 1))
    success = [sum(r["attack/success"] for r in history) / 3 for history in (two, one)]
    assert success[0] > success[1]
