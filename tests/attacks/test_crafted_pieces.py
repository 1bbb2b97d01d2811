"""The parts of crafted attacks: directions, copies, the search along rays, projections, which rows are used, the ceiling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fl_lightning.attacks import copies, half_flipped, perturbation, projected, ray, rays
from fl_lightning.attacks._crafted import bounded
from fl_lightning.attacks._known_rows import known_rows, with_statistics
from fl_lightning.models import FlatNetwork
from fl_lightning.randomness import generator

F64 = torch.float64
seeds = st.integers(0, 999)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=F64)


# --- directions --------------------------------------------------------------------------------------------------------


def test_directions_by_hand():
    rows = torch.tensor([[3.0, -4.0, 0.0], [3.0, -4.0, 2.0]], dtype=F64)
    mean = torch.tensor([3.0, -4.0, 1.0], dtype=F64)
    assert_close(perturbation(rows, "unit"), -mean / math.sqrt(26))
    assert perturbation(rows, "sign").tolist() == [-1, 1, -1]
    assert perturbation(rows, "std").tolist() == [0, 0, -1]


@pytest.mark.parametrize("kind", ["unit", "sign", "std"])
def test_a_zero_mean_has_no_direction_and_half_precision_is_widened(kind):
    assert not perturbation(torch.zeros(3, 4), kind).any()
    wide = perturbation(torch.full((2, 3), 0.5, dtype=torch.bfloat16), kind)
    assert wide.dtype == torch.float32
    assert wide.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 40), seed=seeds)
def test_exactly_half_of_the_coordinates_flip(dim, seed):
    direction = normal(dim, seed=seed)
    flipped = half_flipped(direction, generator(seed, "half"))
    assert int((flipped == -direction).sum()) == dim // 2
    assert torch.equal(flipped.abs(), direction.abs())


def test_other_halves_flip_with_another_generator():
    direction = torch.ones(64)
    assert not torch.equal(half_flipped(direction, generator(0, "half")), half_flipped(direction, generator(1, "half")))


# --- copies ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 6), spread=st.floats(0.01, 2), seed=seeds)
def test_copies_lie_around_the_crafted_update(count, spread, seed):
    crafted, mean = normal(30, seed=seed), normal(30, seed=seed + 1)
    rows = copies(crafted, mean, count, spread=spread, generator=generator(seed, "copies"))
    assert_close(rows.mean(0), crafted)
    lengths = (rows - crafted).norm(dim=1)
    bound = spread * float((crafted - mean).norm())
    assert bool((lengths > 0).all())
    assert bool((lengths < 2 * bound).all()), "centring moves an offset by less than its own length"
    assert len({tuple(row) for row in rows.tolist()}) == count


def test_copies_are_exact_without_spread_or_company():
    crafted, mean = normal(5), normal(5, seed=1)
    assert torch.equal(copies(crafted, mean, 3), crafted.expand(3, -1))
    assert torch.equal(copies(crafted, mean, 1, spread=0.5, generator=generator(0, "copies")), crafted[None])


# --- the search along rays ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(peak=st.floats(0.02, 60), scale=st.floats(1e-6, 1e6))
def test_a_smooth_peak_is_found_whatever_the_scale(peak, scale):
    found = ray(lambda gamma: -abs(math.log(max(gamma, 1e-30) / (peak * scale))), scale)
    assert found.gamma == pytest.approx(peak * scale, rel=1e-3)
    assert found.trials <= 60
    assert not found.at_reach or peak > 32


def test_a_jump_is_approached_from_below():
    found = ray(lambda gamma: gamma if gamma <= 3.7 else 0.0, 1.0)
    assert 3.7 * 0.999 < found.gamma <= 3.7


def test_of_equals_the_smallest_wins():
    plateau = ray(lambda gamma: min(gamma, 2.5), 1.0)
    assert plateau.value == pytest.approx(2.5)
    assert plateau.gamma == pytest.approx(2.5, rel=0.15)
    assert ray(lambda gamma: 0.0, 1.0).gamma == 0
    assert ray(lambda gamma: float("nan"), 1.0).gamma == 0


def test_what_grows_for_ever_ends_just_below_twice_the_reach():
    found = ray(lambda gamma: gamma, 1.0)
    assert found.at_reach
    assert 120 < found.gamma < 128


@pytest.mark.parametrize("trials", [1, 5, 14, 24, 60, 200])
def test_the_budget_is_kept(trials):
    tried = []

    def objective(gamma):
        tried.append(gamma)
        return -abs(gamma - 1.3)

    assert ray(objective, 1.0, trials=trials).trials == len(tried) <= trials
    assert len(set(tried)) == len(tried), "no point is tried twice"


def test_no_scale_tries_nothing_but_zero():
    assert ray(lambda gamma: gamma, 0.0) == (0, 0.0, 0.0, 1, False)


def test_the_best_of_several_rays_gets_the_rest_of_the_budget():
    tried: list[int] = []

    def hill(index: int, height: float):
        def objective(gamma: float) -> float:
            tried.append(index)
            return height - abs(gamma - 1.1)

        return objective

    found = rays([hill(0, 1.0), hill(1, 2.0)], [1.0, 1.0])
    assert found.ray == 1
    assert found.gamma == pytest.approx(1.1, rel=1e-3)
    assert tried.count(0) == 24
    assert found.trials == len(tried) <= 60


def test_a_peak_below_the_scan_is_still_seen():
    found = ray(lambda gamma: gamma if gamma < 0.01 else -1.0, 1.0)
    assert 0 < found.gamma < 0.01


# --- projections -------------------------------------------------------------------------------------------------------


def test_projected_golden():
    assert_close(projected(torch.tensor([3.0, 4.0, 0.0]), 2.0), torch.tensor([1.2, 1.6, 0.0]))
    assert projected(torch.tensor([3.0, -4.0, 0.5]), 2.0, "linf").tolist() == [2, -2, 0.5]


@settings(max_examples=30, deadline=None)
@given(radius=st.floats(0.01, 20), seed=seeds)
def test_projected_is_the_nearest_point_of_the_ball(radius, seed):
    delta = normal(4, 6, seed=seed) * 3
    once = projected(delta, radius)
    assert bool((once.norm(dim=1) <= radius * (1 + 1e-12)).all())
    assert_close(projected(once, radius), once)
    inside = delta.norm(dim=1) <= radius
    assert torch.equal(once[inside], delta[inside])
    other = projected(normal(4, 6, seed=seed + 1), radius)
    assert bool(((delta - once).norm(dim=1) <= (delta - other).norm(dim=1) + 1e-9).all())
    assert torch.equal(projected(delta, radius, "linf"), delta.clamp(-radius, radius))


# --- rows of the view --------------------------------------------------------------------------------------------------


class Seen:
    """What `known_rows` asks of a view."""

    def __init__(self, knowledge: str, benign: int, own: int = 2):
        self.knowledge, self.n_malicious, self.n_clients = knowledge, own, own + benign
        self.own_updates = torch.full((own, 3), 1.0, dtype=torch.float16)
        self.benign_updates = torch.full((benign, 3), 2.0)
        visible = {"none": 0, "partial": 1, "full": benign}[knowledge]
        self.known_updates = torch.cat([self.own_updates.float(), self.benign_updates[:visible]])
        self.flat = type("Flat", (), {"trained": 2})()


def test_known_rows_by_knowledge():
    assert known_rows(Seen("none", 3)).tolist() == [[1.0] * 3] * 2
    assert len(known_rows(Seen("partial", 3))) == 3
    assert known_rows(Seen("full", 3)).tolist() == [[2.0] * 3] * 3, "benign rows only"
    assert known_rows(Seen("full", 0)).tolist() == [[1.0] * 3] * 2, "nobody benign: the own rows"
    assert known_rows(Seen("full", 0)).dtype == torch.float32


def test_statistics_stay_at_the_mean_of_the_own_rows():
    view = Seen("full", 3)
    view.own_updates = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    assert with_statistics(view, torch.tensor([[7.0, 8.0]])).tolist() == [[7, 8, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_ceiling(dtype):
    rows = torch.tensor([[3e20, 4e20], [3.0, 4.0]], dtype=F64)
    model = torch.full((2,), 2.0, dtype=dtype)
    capped = bounded(rows, model)
    expected = min(1e8 * float(model.double().norm()), torch.finfo(dtype).max / 2)
    assert float(capped[0].norm()) == pytest.approx(expected)
    assert torch.equal(capped[1], rows[1])
    assert capped.to(dtype).isfinite().all()


# --- a fresh model -----------------------------------------------------------------------------------------------------


def test_a_fresh_model_is_new_reproducible_and_leaves_everything_alone():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    flat = FlatNetwork(network, "cross_entropy")
    before, state = flat.vector(), torch.get_rng_state()
    first, again = flat.fresh(generator(0, "fresh")), flat.fresh(generator(0, "fresh"))
    assert torch.equal(first, again)
    assert not torch.equal(first, flat.fresh(generator(1, "fresh")))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(flat.vector(), before)
    parts = flat.split(first)
    assert parts["1.weight"].tolist() == [1] * 4
    assert parts["1.running_var"].tolist() == [1] * 4
    assert 0 < float(parts["0.weight"].abs().max()) <= 1 / math.sqrt(3)
