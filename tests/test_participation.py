"""Who takes part, who is malicious, when the attack happens."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.participation import (
    Always,
    Fraction,
    FromRound,
    Full,
    KOfN,
    Never,
    Once,
    Participation,
    Random,
    Schedule,
    Spaced,
    Staggered,
)


def cohorts(participation: Participation, n_clients: int, rounds: int, seed: int = 0) -> list[Any]:
    return [participation.sample(round, n_clients, seed) for round in range(rounds)]


# --- cohorts -----------------------------------------------------------------------------------------------------------


@st.composite
def populations(draw: Any) -> tuple[Participation, int]:
    n_clients = draw(st.integers(1, 40))
    malicious = draw(st.integers(0, n_clients))
    kind = draw(st.sampled_from(["full", "fraction", "k_of_n"]))
    if kind == "full":
        return Full(malicious=malicious), n_clients
    if kind == "fraction":
        return Fraction(malicious=malicious, fraction=draw(st.floats(0.01, 1))), n_clients
    return KOfN(malicious=malicious, k=draw(st.integers(1, n_clients))), n_clients


@settings(max_examples=60, deadline=None)
@given(populations(), st.integers(0, 5), st.integers(0, 3))
def test_a_cohort_is_sorted_distinct_and_tells_who_is_malicious(
    population: tuple[Participation, int], round: int, seed: int
):
    participation, n_clients = population
    participation.check(n_clients)
    cohort = participation.sample(round, n_clients, seed)
    assert len(cohort.clients) == participation.per_round(n_clients) == len(cohort.malicious)
    assert cohort.clients.tolist() == sorted(set(cohort.clients.tolist()))
    assert cohort.clients.min() >= 0
    assert cohort.clients.max() < n_clients
    bad = participation.malicious_clients(n_clients, seed)
    assert len(bad) == len(set(bad.tolist())) == participation.malicious
    assert bad.tolist() == sorted(bad.tolist())
    assert torch.equal(cohort.clients[cohort.malicious], bad[torch.isin(bad, cohort.clients)])
    again = participation.sample(round, n_clients, seed)
    assert torch.equal(again.clients, cohort.clients)
    assert torch.equal(again.malicious, cohort.malicious)


def test_golden_cohorts():
    """The draws of a seed are part of every published figure: they must never change."""
    participation = KOfN(k=4, malicious=3)
    assert participation.malicious_clients(10, seed=0).tolist() == [3, 4, 7]
    assert [cohort.clients.tolist() for cohort in cohorts(participation, 10, 3)] == [
        [2, 3, 6, 7],
        [1, 4, 7, 8],
        [1, 4, 7, 9],
    ]


def test_malicious_ids_depend_on_the_seed_and_not_on_the_round():
    participation = Full(malicious=5)
    ids = {tuple(participation.malicious_clients(50, seed).tolist()) for seed in range(5)}
    assert len(ids) == 5
    bad = participation.malicious_clients(50, 0)
    for cohort in cohorts(participation, 50, 3):
        assert torch.equal(cohort.clients[cohort.malicious], bad)


def test_everybody_is_drawn_equally_often():
    counts = torch.zeros(20)
    for cohort in cohorts(KOfN(k=5, malicious=4), 20, 800):
        counts[cohort.clients] += 1
    # 800 x 5 / 20 = 200 expected, standard deviation sqrt(800 x 1/4 x 3/4) = 12.2
    assert (counts - 200).abs().max() < 4.5 * 12.25


def test_rounds_differ():
    drawn = {tuple(cohort.clients.tolist()) for cohort in cohorts(KOfN(k=5), 50, 20)}
    assert len(drawn) == 20


@pytest.mark.parametrize(
    ("fraction", "n_clients", "expected"), [(0.1, 100, 10), (0.1, 3, 1), (0.01, 10, 1), (1.0, 7, 7), (0.26, 10, 3)]
)
def test_fraction_is_rounded_and_at_least_one(fraction: float, n_clients: int, expected: int):
    assert Fraction(fraction=fraction).per_round(n_clients) == expected


# --- forced ------------------------------------------------------------------------------------------------------------


def test_forced_attackers_take_part_in_adversarial_rounds_and_in_no_other():
    participation = KOfN(k=6, malicious=3, forced=True, schedule=FromRound(round=4))
    bad = participation.malicious_clients(20, seed=1)
    for round, cohort in enumerate(cohorts(participation, 20, 10, seed=1)):
        assert len(cohort.clients) == 6
        assert cohort.adversarial == (round >= 4)
        taking_part = cohort.clients[cohort.malicious]
        assert torch.equal(taking_part, bad if round >= 4 else bad[:0])


def test_unforced_attackers_are_sampled_like_everybody():
    participation = KOfN(k=5, malicious=4, schedule=Once(round=0))
    counts = torch.tensor([int(cohort.malicious.sum()) for cohort in cohorts(participation, 20, 600)])
    assert counts.double().mean() == pytest.approx(1.0, abs=0.15)  # 5 x 4 / 20, also in honest rounds
    assert counts.min() == 0


def test_forcing_only_moves_attackers_in():
    """The honest participants are those that the same round would have drawn anyway, as far as there is room."""
    free = KOfN(k=6, malicious=3)
    forced = KOfN(k=6, malicious=3, forced=True)
    for round in range(5):
        a, b = free.sample(round, 20, 0), forced.sample(round, 20, 0)
        honest_then, honest_now = a.clients[~a.malicious], b.clients[~b.malicious]
        assert len(honest_now) == 3
        assert torch.isin(honest_now, honest_then).all()


# --- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [
        (Always(), [0, 1, 2, 3, 4, 5]),
        (FromRound(round=2), [2, 3, 4, 5]),
        (Once(round=3), [3]),
        (Once(round=9), []),
        (Spaced(first=1, every=2, times=2), [1, 3]),
    ],
)
def test_schedules(schedule: Schedule, rounds: list[int]):
    assert [round for round in range(6) if schedule.adversarial(round, seed=0)] == rounds


def test_random_schedule_is_a_fair_coin_of_seed_and_round():
    schedule = Random(probability=0.3)
    hits = [schedule.adversarial(round, seed=0) for round in range(2000)]
    assert hits == [schedule.adversarial(round, seed=0) for round in range(2000)]
    assert sum(hits) / 2000 == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 2000))
    assert hits != [schedule.adversarial(round, seed=1) for round in range(2000)]
    assert not any(Random(probability=0).adversarial(round, 0) for round in range(100))
    assert all(Random(probability=1).adversarial(round, 0) for round in range(100))


# --- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("participation", "path", "match"),
    [
        (Full(malicious=11), "malicious", "at most 10 clients can be malicious, got 11"),
        (KOfN(k=11), "", "11 participants a round need at least as many clients, got 10"),
        (KOfN(k=2, malicious=3, forced=True), "forced", "3 forced malicious clients do not fit into a round of 2"),
        (KOfN(k=8, malicious=3, forced=True), "forced", "honest rounds need 8 benign clients when forced, there are 7"),
    ],
)
def test_impossible_numbers(participation: Participation, path: str, match: str):
    with pytest.raises(ConfigError, match=match) as caught:
        participation.check(10)
    assert caught.value.path == path


def test_limits_that_just_fit():
    Full(malicious=10).check(10)
    KOfN(k=10).check(10)
    KOfN(k=7, malicious=3, forced=True).check(10)
    KOfN(k=3, malicious=3, forced=True).check(10)


def test_attackers_stay_when_another_participation_is_chosen():
    tree: dict[str, Any] = {"data": "digits"}
    tree["participation"] = {"name": "full", "malicious": 3, "schedule": {"name": "once", "round": 2}}
    for choice in ("participation={name: k_of_n, k: 10}", "participation=full"):
        chosen = load(tree, [choice]).participation
        assert (chosen.malicious, chosen.schedule) == (3, Once(round=2))
    assert load(tree, ["participation={name: k_of_n, k: 10, malicious: 1}"]).participation.malicious == 1
    assert load(tree, ["participation={name: full, malicious: 0}"]).participation.malicious == 0
    assert load(tree).override({"participation": {"name": "fraction", "fraction": 0.5}}).participation.malicious == 3


def test_attackers_in_turn_each_have_one_round():
    participation = Full(malicious=3, schedule=Staggered(first=2, every=2))
    ids = participation.malicious_clients(8, seed=0).tolist()
    for round, whose in ((1, None), (2, ids[0]), (3, None), (4, ids[1]), (6, ids[2]), (8, None)):
        cohort = participation.sample(round, 8, seed=0)
        assert cohort.adversarial == (whose is not None)
        if whose is not None:
            assert cohort.clients[cohort.malicious].tolist() == [whose]
    forced = KOfN(k=3, malicious=3, forced=True, schedule=Staggered(first=0))
    for round in range(3):
        cohort = forced.sample(round, 8, seed=0)
        assert cohort.clients[cohort.malicious].tolist() == [ids[round]]
        assert not set(cohort.clients.tolist()) & (set(ids) - {ids[round]}), "the others wait for their turn"


def test_never_is_a_control():
    assert not any(Never().adversarial(round, 0) for round in range(9))
