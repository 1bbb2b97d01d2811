"""Label flip, sign flip, A Little Is Enough and inner product manipulation against their formulas."""

from math import erf, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fl_lightning.aggregators import Krum, mean
from fl_lightning.attacks import Alie, Ipm, LabelFlip, LabelMap, alie, ipm, largest_z, sign_flip
from fl_lightning.attacks._label_flip import shifted
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.registry import registry
from fl_lightning.testing.attacks import play

# --- label flip --------------------------------------------------------------------------------------------------------


def test_the_shared_flip_is_the_published_map():
    assert shifted(torch.arange(10), 1, 10).tolist() == [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert torch.equal(shifted(torch.arange(10), 1, 10), LabelMap().wished(10))


def test_every_client_keeps_a_flip_of_its_own():
    attack = LabelFlip(flip="per_client")
    first = play(attack)
    second = play(attack, before=first)
    assert second.state == first.state
    shifts = list(first.state["shifts"].values())
    assert len(shifts) == 3
    assert len(set(shifts)) > 1
    assert all(1 <= shift <= 9 for shift in shifts)
    with pytest.raises(ConfigError, match="flip 'per_client' belongs to the objective label_map, got 'trigger'"):
        registry("attack").build({"name": "label_flip", "flip": "per_client", "objective": "trigger"})


# --- sign flip, A Little Is Enough, inner product manipulation -----------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def test_sign_flip_reverses():
    assert_close(sign_flip(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), 2.0), torch.tensor([[-2.0, 4.0], [0.0, -6.0]]))


@pytest.mark.parametrize(("clients", "malicious", "share"), [(50, 10, 24 / 40), (50, 12, 24 / 38), (51, 12, 25 / 39)])
def test_largest_z_solves_its_equation(clients, malicious, share):
    z = largest_z(clients, malicious)
    assert 0.5 * (1 + erf(z / sqrt(2))) == pytest.approx(share, abs=1e-12)


@given(clients=st.integers(1, 60), share=st.floats(0, 1))
def test_largest_z_is_defined_for_any_numbers(clients, share):
    assert 0 <= largest_z(clients, max(1, round(share * clients))) < 3


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 12), z=st.floats(0, 3), seed=st.integers(0, 99))
def test_alie_stays_z_deviations_from_the_mean(rows, z, seed):
    honest_HD = normal(rows, 30, seed=seed)
    expected_D = (honest_HD.mean(0) - alie(honest_HD, z)) / honest_HD.var(0, correction=0).sqrt()
    assert_close(expected_D, torch.full((30,), z, dtype=torch.float64))


def test_alie_hides_where_its_z_says():
    """At the largest z, supporters and attackers together are a majority on the crafted value's far side."""
    honest_HD = normal(4000, 1, seed=1)
    z = largest_z(5000, 1000)
    beyond = int((honest_HD < alie(honest_HD, z)).sum())
    assert beyond + 1000 == pytest.approx(2500, abs=60)


@settings(max_examples=25, deadline=None)
@given(benign=st.integers(1, 12), malicious=st.integers(1, 8), epsilon=st.floats(0, 9), seed=st.integers(0, 99))
def test_ipm_turns_the_mean_as_its_docstring_says(benign, malicious, epsilon, seed):
    benign_BD = normal(benign, 5, seed=seed)
    crafted_D = ipm(benign_BD, epsilon)
    everybody_CD = torch.cat([benign_BD, crafted_D.repeat(malicious, 1)])
    factor = (benign - epsilon * malicious) / (benign + malicious)
    assert_close(mean(everybody_CD), factor * benign_BD.mean(0))


def test_small_ipm_is_selected_by_krum_and_large_is_not():
    rule = Krum(n_byzantine=3)
    shift_D = 0.5 * torch.ones(200, dtype=torch.float64)
    benign_BD = normal(12, 200, seed=2) + shift_D
    for epsilon, selected in ((0.1, True), (20.0, False)):
        everybody_CD = torch.cat([ipm(benign_BD, epsilon).repeat(3, 1), benign_BD])
        assert bool(rule(everybody_CD).kept[:3].any()) is selected


def test_knowledge_decides_whose_updates_are_used():
    played = play(Ipm(knowledge="full", epsilon=1.0))
    bad_C = played.malicious_C
    assert_close(played.submitted_CD[bad_C][0], -played.honest_CD[~bad_C].mean(0))
    played = play(Ipm(knowledge="none", epsilon=1.0))
    assert_close(played.submitted_CD[bad_C][0], -played.honest_CD[bad_C].mean(0))
    played = play(Alie(knowledge="full", z=0.0))
    assert_close(played.submitted_CD[bad_C][0], played.honest_CD.mean(0))
