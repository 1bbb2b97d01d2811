"""The classic rules against naive float64 versions of their definitions: random shapes, ties, extreme scales."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_rows import matrices, normal
from torch.testing import assert_close

from fl_lightning.aggregators import (
    Bulyan,
    Krum,
    MultiKrum,
    _order,
    geometric_median,
    krum_scores,
    mean,
    median,
    multi_krum,
    ranked_blocks,
    squared_distances,
    trimmed_mean,
)
from fl_lightning.randomness import generator


@pytest.fixture
def small_blocks(monkeypatch):
    """Force the network, and several blocks with a shorter last one."""
    monkeypatch.setattr(_order, "NETWORK_MIN_COLUMNS", 1)
    monkeypatch.setattr(_order, "BLOCK_ENTRIES", 150)


@pytest.mark.parametrize("n_rows", range(1, 13))
def test_the_network_sorts_all_zero_one_columns(n_rows, small_blocks):
    """A network that sorts every sequence of zeros and ones sorts everything (0-1 principle)."""
    columns_CD = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n_rows))).T.contiguous()
    truth = columns_CD.sort(0).values
    for ranks in [*([rank] for rank in range(n_rows)), range(n_rows)]:
        found = torch.cat([torch.stack(rows) for _, rows in ranked_blocks(columns_CD, ranks)], 1)
        assert torch.equal(found, truth[list(ranks)])
    for cut in range((n_rows + 1) // 2):
        ranks = range(cut, n_rows - cut)
        found = torch.cat([torch.stack(rows).sum(0) for _, rows in ranked_blocks(columns_CD, ranks, ordered=False)])
        assert torch.equal(found, truth[cut : n_rows - cut].sum(0))


@pytest.mark.parametrize("n_rows", [50, 64, 101])
def test_the_network_sorts_many_rows(n_rows):
    updates_CD = normal(n_rows, 2000)
    found = torch.cat([torch.stack(rows) for _, rows in ranked_blocks(updates_CD, range(n_rows))], 1)
    assert torch.equal(found, updates_CD.sort(0).values)


@settings(max_examples=60, deadline=None)
@given(updates_CD=matrices(), data=st.data())
def test_order_statistics_match_sorting(updates_CD, data):
    n_rows = len(updates_CD)
    cut = data.draw(st.integers(0, (n_rows - 1) // 2))
    truth = updates_CD.double().sort(0).values
    tolerance = {"rtol": 1e-2 if updates_CD.dtype == torch.bfloat16 else 1e-5, "atol": 1e-6}
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            patch.setattr(_order, "NETWORK_MIN_COLUMNS", 1)
            patch.setattr(_order, "BLOCK_ENTRIES", 8 * n_rows)
        lower, middle, trimmed = median(updates_CD, lower=True), median(updates_CD), trimmed_mean(updates_CD, cut)
    assert lower.dtype == middle.dtype == trimmed.dtype == updates_CD.dtype
    assert torch.equal(lower.double(), truth[(n_rows - 1) // 2])
    expected = (truth[(n_rows - 1) // 2] + truth[n_rows // 2]) / 2
    assert_close(middle.double(), expected, **tolerance)
    assert_close(trimmed.double(), truth[cut : n_rows - cut].mean(0), **tolerance)


def naive_distances(updates_CD):
    exact = updates_CD.double()
    return (exact[:, None] - exact[None]).square().sum(-1)


def naive_scores(distances_CC, n_byzantine):
    """By the definition: the C - f - 2 nearest others, without the row itself."""
    n_rows = len(distances_CC)
    others = [torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(distances_CC)]
    return torch.stack([row.sort().values[: n_rows - n_byzantine - 2].sum() for row in others])


@settings(max_examples=60, deadline=None)
@given(updates_CD=matrices(min_rows=3), squared=st.booleans(), data=st.data())
def test_krum_matches_its_definition(updates_CD, squared, data):
    n_rows = len(updates_CD)
    n_byzantine = data.draw(st.integers(0, (n_rows - 3) // 2))
    distances_CC = naive_distances(updates_CD)
    truth = naive_scores(distances_CC if squared else distances_CC.sqrt(), n_byzantine)
    scores = krum_scores(updates_CD, n_byzantine, squared=squared)
    assert_close(scores, truth, rtol=1e-5, atol=1e-9)
    best = int(Krum(n_byzantine=n_byzantine, squared=squared)(updates_CD).kept.nonzero())
    assert truth[best] <= truth.min() * (1 + 1e-5) + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), n_byzantine=st.integers(0, 4), squared=st.booleans(), extra=st.integers(0, 4))
def test_integer_ties_go_to_the_lowest_index(seed, n_byzantine, squared, extra):
    n_rows = 2 * n_byzantine + 3 + extra
    updates_CD = torch.randint(0, 2, (n_rows, 4), generator=generator(seed, "ties")).float()
    distances_CC = naive_distances(updates_CD)
    scores = naive_scores(distances_CC if squared else distances_CC.sqrt(), n_byzantine).round(decimals=9)
    best = Krum(n_byzantine=n_byzantine, squared=squared)(updates_CD).kept.nonzero().flatten().tolist()
    assert best == [int((scores == scores.min()).nonzero()[0])]
    rank = sorted(range(n_rows), key=lambda row: (float(scores[row]), row))[: n_rows - n_byzantine]
    kept = MultiKrum(n_byzantine=n_byzantine, squared=squared)(updates_CD).kept.nonzero().flatten().tolist()
    assert kept == sorted(rank)


def test_shares_are_as_precise_as_the_updates():
    updates_CD, weights_C = normal(7, 100).double(), torch.arange(1, 8)
    assert_close(mean(updates_CD), updates_CD.mean(0), rtol=1e-14, atol=1e-15)
    weighted_D = (updates_CD * weights_C[:, None] / 28).sum(0)
    assert_close(mean(updates_CD, weights_C), weighted_D, rtol=1e-14, atol=1e-15)
    assert_close(multi_krum(updates_CD, 0, weights_C=weights_C), weighted_D, rtol=1e-14, atol=1e-15)


def test_copies_of_a_row_tie_exactly():
    updates_CD = normal(30, 4999)
    updates_CD[[7, 11, 23, 29]] = updates_CD[20].clone()
    scores_C = krum_scores(updates_CD, 10)
    assert len(set(scores_C[[7, 11, 20, 23, 29]].tolist())) == 1
    updates_CD[10:] = updates_CD[9].clone()
    assert int(Krum(n_byzantine=10)(updates_CD).kept.nonzero()) == 9


@pytest.mark.parametrize(
    "updates_CD",
    [
        10 * normal(1, 3000) / 3000**0.5 + 1e-6 * normal(12, 3000, seed=1) / 3000**0.5,  # norm 10, distances 1e-6
        torch.cat([normal(9, 3000), normal(1, 3000, seed=1) + 1e-5 * normal(9, 3000, seed=2)]),  # a tight cluster
        torch.cat([1e12 * normal(3, 3000), normal(9, 3000, seed=1)]),
        torch.cat([1e25 * normal(1, 3000), normal(9, 3000, seed=1)]),  # squares overflow float32
        1e-25 * normal(9, 3000),  # squares underflow float32
        normal(12, 300) * 10.0 ** -torch.arange(12)[:, None],
        torch.cat([normal(8, 100_000), normal(1, 100_000, seed=1).expand(4, -1)]),  # several blocks, copies
    ],
    ids=["near", "cluster", "far", "overflow", "underflow", "scales", "copies"],
)
def test_distances_where_products_cancel(updates_CD):
    before_CD = updates_CD.clone()
    truth = naive_distances(updates_CD) if updates_CD.shape[1] < 10_000 else squared_distances(updates_CD.double())
    assert_close(squared_distances(updates_CD), truth, rtol=1e-5, atol=0)
    assert torch.equal(updates_CD, before_CD)
    scores_C = naive_scores(truth, 2)  # near-copies may tie to float32's precision
    assert float(scores_C[krum_scores(updates_CD, 2).argmin()]) <= float(scores_C.min()) * (1 + 1e-6)


def naive_bulyan(updates_CD, n_byzantine):
    """By the definition, in float64, one coordinate at a time. Ties go to the lower first score."""
    exact = updates_CD.double()
    n_rows, distances_CC = len(exact), naive_distances(updates_CD)
    first = naive_scores(distances_CC, n_byzantine)
    left, selected = list(range(n_rows)), []
    for _ in range(n_rows - 2 * n_byzantine):
        neighbours = max(1, len(left) - n_byzantine - 2)
        score = {
            row: sum(sorted(float(distances_CC[row, other]) for other in left if other != row)[:neighbours])
            for row in left
        }
        selected.append(min(left, key=lambda row: (score[row], float(first[row]), row)))
        left.remove(selected[-1])
    chosen = exact[selected]
    count = n_rows - 4 * n_byzantine
    result = []
    for column in chosen.T:
        middle = np.median(column.numpy())
        nearest = sorted(column.tolist(), key=lambda value: (abs(value - middle), value))[:count]
        result.append(sum(nearest) / count)
    return torch.tensor(result, dtype=torch.float64), sorted(selected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), n_byzantine=st.integers(0, 3), extra=st.integers(0, 3), network=st.booleans())
def test_bulyan_matches_its_definition(seed, n_byzantine, extra, network):
    updates_CD = normal(4 * n_byzantine + 3 + extra, 30, seed=seed)
    updates_CD[:, 20:] = updates_CD[:, 20:].round()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_order, "NETWORK_MIN_COLUMNS", 1 if network else 10**9)
        result = Bulyan(n_byzantine=n_byzantine)(updates_CD)
    truth, selected = naive_bulyan(updates_CD, n_byzantine)
    assert result.kept.nonzero().flatten().tolist() == selected
    assert_close(result.update.double()[:20], truth[:20], rtol=1e-5, atol=1e-6)
    # With ties at equal distance on either side of the median the two orders of rounding may differ; both are valid.
    assert_close(result.update.double()[20:], truth[20:], rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), n_rows=st.integers(1, 20), n_columns=st.integers(2, 200), weighted=st.booleans())
def test_geometric_median_is_a_minimum(seed, n_rows, n_columns, weighted):
    updates_CD = normal(n_rows, n_columns, seed=seed, dtype=torch.float64)
    updates_CD[: n_rows // 3] += 20
    weights_C = torch.rand(n_rows, generator=generator(seed, "weights")).double() if weighted else torch.ones(n_rows)
    found = geometric_median(updates_CD, weights_C=weights_C, tol=1e-9, max_iter=1000)

    def cost(point):
        return float(weights_C.double() @ (updates_CD - point).norm(dim=1))

    best = cost(found)
    slack = 1e-6 * best + 1e-6
    assert all(best <= cost(row) + slack for row in [*updates_CD, updates_CD.mean(0), updates_CD.median(0).values])
    for size in (1e-2, 1e-1):
        assert best <= cost(found + size * normal(n_columns, seed=seed + 1, dtype=torch.float64)) + slack
