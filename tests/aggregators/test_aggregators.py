"""The aggregators against golden numbers, naive float64 versions, independent libraries and the conformance suite."""

import itertools
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fl_lightning.aggregators import (
    Aggregate,
    Aggregator,
    Bulyan,
    Byzfl,
    Caf,
    CenteredClipping,
    Cge,
    Dnc,
    GeometricMedian,
    Krum,
    Lasa,
    Mda,
    Meamed,
    Mean,
    Median,
    Monna,
    MultiKrum,
    Rlr,
    SignVote,
    Smea,
    TrimmedMean,
    _order,
    bulyan,
    geometric_median,
    krum,
    krum_scores,
    mean,
    median,
    multi_krum,
    ranked_blocks,
    squared_distances,
    trimmed_mean,
)
from fl_lightning.errors import ConfigError
from fl_lightning.randomness import generator
from fl_lightning.registry import registry
from fl_lightning.testing.aggregators import AGGREGATOR_CHECKS, called, check_aggregator

# Every registered aggregator takes its cases from here.
CANONICAL = {
    "mean": [Mean()],
    "krum": [Krum(n_byzantine=2), Krum(n_byzantine=0), Krum(n_byzantine=2, squared=False)],
    "multi_krum": [MultiKrum(n_byzantine=2), MultiKrum(n_byzantine=2, m=3)],
    "trimmed_mean": [TrimmedMean(n_byzantine=2), TrimmedMean(n_byzantine=0), TrimmedMean(fraction=0.2)],
    "median": [Median(), Median(lower=True)],
    "bulyan": [Bulyan(n_byzantine=2), Bulyan(n_byzantine=1, squared=False)],
    "geometric_median": [GeometricMedian()],
    "byzfl": [Byzfl(rule="Median"), Byzfl(pre=("NNM",), n_byzantine=2), Byzfl(rule="MDA", n_byzantine=2)],
    "caf": [Caf(n_byzantine=2)],
    "centered_clipping": [CenteredClipping(), CenteredClipping(tau=1.0, steps=3)],
    "cge": [Cge(n_byzantine=2)],
    "dnc": [Dnc(n_byzantine=2), Dnc(n_byzantine=2, iterations=3, columns=500, filter_share=1.5)],
    "lasa": [Lasa(), Lasa(average="dense", lambda_n=1.0)],
    "mda": [Mda(n_byzantine=2)],
    "meamed": [Meamed(n_byzantine=2)],
    "monna": [Monna(n_byzantine=2, index=4), Monna(n_byzantine=2)],
    "rlr": [Rlr(theta=4), Rlr(share=0.5, inner=TrimmedMean(n_byzantine=2))],
    "sign_vote": [SignVote(lr=0.02), SignVote(scale="median")],
    "smea": [Smea(n_byzantine=2)],
}
CASES = [case for cases in CANONICAL.values() for case in cases]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64).to(dtype)


# --- conformance -------------------------------------------------------------------------------------------------------


def test_every_registered_aggregator_has_a_canonical_case():
    assert set(CANONICAL) == set(registry("aggregator").names())
    for name, cases in CANONICAL.items():
        assert all(type(case) is registry("aggregator")[name] for case in cases)


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("check", AGGREGATOR_CHECKS.values(), ids=AGGREGATOR_CHECKS)
def test_conformance(check, case):
    check(case, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_conformance_on_the_gpu(case):
    check_aggregator(case, "cuda")
    updates_CD = normal(23, 5000)
    assert_close(case(updates_CD.cuda()).update.cpu(), case(updates_CD).update, rtol=1e-5, atol=1e-6)


def everybody(updates_CD):
    return torch.ones(len(updates_CD), dtype=torch.bool)


class FirstRow(Aggregator):
    name: ClassVar[str] = "first_row"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(updates_CD[0].clone(), everybody(updates_CD))


class InPlace(Aggregator):
    name: ClassVar[str] = "in_place"
    robust: ClassVar[bool] = False

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(updates_CD.div_(len(updates_CD)).sum(0), everybody(updates_CD))


class NotRobust(Aggregator):
    name: ClassVar[str] = "not_robust"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(mean(updates_CD, weights_C), everybody(updates_CD))


class FalselyModest(Aggregator):
    name: ClassVar[str] = "falsely_modest"
    robust: ClassVar[bool] = False

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))


class Shrinking(Aggregator):
    name: ClassVar[str] = "shrinking"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(0.9 * median(updates_CD), everybody(updates_CD))


class Wide(Aggregator):
    name: ClassVar[str] = "wide"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD).double(), everybody(updates_CD))


class Random(Aggregator):
    name: ClassVar[str] = "random"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD) + 1e-9 * torch.randn(updates_CD.shape[1]), everybody(updates_CD))


class Unchecked(Aggregator):
    name: ClassVar[str] = "unchecked"
    n_byzantine: int = 2

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))


class LetsNanIn(Aggregator):
    name: ClassVar[str] = "lets_nan_in"

    def __call__(self, updates_CD, weights_C=None, *, past=None):
        return self.aggregate(updates_CD, weights_C)

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))


class SumsWeights(Aggregator):
    name: ClassVar[str] = "sums_weights"
    robust: ClassVar[bool] = False

    def aggregate(self, updates_CD, weights_C):
        weights_C = torch.full(everybody(updates_CD).shape, 1 / len(updates_CD)) if weights_C is None else weights_C
        return Aggregate(weights_C.to(updates_CD.dtype) @ updates_CD, everybody(updates_CD))


class Overcounts(Aggregator):
    name: ClassVar[str] = "overcounts"

    def aggregate(self, updates_CD, weights_C):
        return Aggregate(median(updates_CD), everybody(updates_CD))

    def shares(self, updates_CD, weights_C, result):
        return torch.ones(len(updates_CD))


BROKEN = {
    "permutation_invariant": FirstRow(),
    "input_untouched": InPlace(),
    "bounded_under_attack": NotRobust(),
    "translation_equivariant": Shrinking(),
    "equal_rows_returned": Shrinking(),
    "shapes_kept": Wide(),
    "deterministic": Random(),
    "too_few_rows_refused": Unchecked(),
    "non_finite_rows_left_out": LetsNanIn(),
    "weights_are_relative": SumsWeights(),
    "influence_is_a_share": Overcounts(),
}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_aggregator_fails_its_check(check):
    with pytest.raises((AssertionError, RuntimeError)):
        AGGREGATOR_CHECKS[check](BROKEN[check], "cpu")
    with pytest.raises(AssertionError, match=f"{type(BROKEN[check]).__name__}.* fails the check"):
        check_aggregator(BROKEN[check])


def test_a_robust_rule_declared_as_not_robust_fails():
    with pytest.raises(AssertionError, match="declared as not robust"):
        AGGREGATOR_CHECKS["bounded_under_attack"](FalselyModest(), "cpu")


# --- golden numbers ----------------------------------------------------------------------------------------------------

TIED = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1], [2, 1, 0], [5, 5, 5.0]])
DISAGREE = torch.tensor([[1, 4, 4], [1, 0, 2], [2, 2, 0], [4, 1, 2], [4, 1, 3], [4, 2, 3.0]])
FOUR = torch.tensor([[1, 10], [2, -1], [3, 4], [4, 100.0]])


@pytest.mark.parametrize(
    ("updates_CD", "squared", "scores", "chosen"),
    [
        (TIED, True, [5, 5, 5, 6, 8, 164], 0),
        (TIED, False, [3.732051, 3.828427, 3.828427, 4.242641, 4.828427, 22.123309], 0),
        (DISAGREE, True, [53, 30, 31, 12, 13, 16], 3),
        (DISAGREE, False, [12.572692, 9.478902, 9.605551, 5.414214, 5.316625, 6.019765], 4),
    ],
)
def test_krum_golden(updates_CD, squared, scores, chosen):
    expected = torch.tensor(scores, dtype=torch.float64)
    assert_close(krum_scores(updates_CD, 1, squared=squared), expected, rtol=0, atol=1e-6)
    result = Krum(n_byzantine=1, squared=squared)(updates_CD)
    assert result.kept.nonzero().flatten().tolist() == [chosen]
    assert torch.equal(result.update, updates_CD[chosen])
    assert torch.equal(krum(updates_CD, 1, squared=squared), updates_CD[chosen])


def test_krum_of_five():
    updates_CD = torch.tensor([[0, 0], [0.1, 0], [0, 0.1], [5, 5], [0.2, 0.2]])
    assert Krum(n_byzantine=1)(updates_CD).kept.tolist() == [True, False, False, False, False]


def test_median_and_trimmed_mean_golden():
    assert median(FOUR).tolist() == [2.5, 7]
    assert median(FOUR, lower=True).tolist() == [2, 4] == FOUR.median(0).values.tolist()
    assert trimmed_mean(FOUR, 1).tolist() == [2.5, 7]
    assert TrimmedMean(fraction=0.25)(FOUR).update.tolist() == [2.5, 7]


def test_geometric_median_golden():
    corners = torch.tensor([[0, 0], [4, 0], [1, 1], [0, 4.0]])  # inside a triangle: the inner point itself
    assert_close(geometric_median(corners), torch.tensor([1.0, 1.0]), rtol=0, atol=1e-5)
    line = torch.tensor([[0.0], [1.0], [10.0]])  # on a line: the (weighted) median
    assert_close(geometric_median(line), torch.tensor([1.0]), rtol=0, atol=1e-5)
    assert_close(geometric_median(line, weights_C=torch.tensor([5, 1, 1])), torch.tensor([0.0]), rtol=0, atol=1e-5)
    triangle = torch.tensor([[0, 0], [1, 0], [0.5, 3**0.5 / 2]], dtype=torch.float64)  # Fermat's point
    assert_close(geometric_median(triangle), triangle.mean(0), rtol=0, atol=1e-6)


# --- against naive versions, random shapes and ties ----------------------------------------------------------------------


@st.composite
def matrices(draw, min_rows=1, max_rows=24):
    n_rows, n_columns = draw(st.integers(min_rows, max_rows)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    if draw(st.booleans()):  # few distinct values: many ties
        few = torch.randint(-2, 3, (n_rows, n_columns), generator=generator(draw(st.integers(0, 999)), "ties"))
        return few.to(dtype)
    return normal(n_rows, n_columns, seed=draw(st.integers(0, 999)), dtype=dtype)


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


# --- against other libraries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [11, 12, 50])
def test_agreement_with_byzfl(n_rows):
    byzfl = pytest.importorskip("byzfl")
    updates_CD, f = normal(n_rows, 3000), n_rows // 5
    # Its Krum sums over C - f - 1 others (ours, as in the paper, over C - f - 2) and
    # selects by argpartition: Krum and Multi-Krum are compared with float64 references above instead.
    assert_close(trimmed_mean(updates_CD, f), byzfl.TrMean(f=f)(updates_CD), rtol=1e-5, atol=1e-5)
    assert_close(median(updates_CD), byzfl.Median()(updates_CD), rtol=1e-5, atol=1e-5)
    assert_close(mean(updates_CD), byzfl.Average()(updates_CD), rtol=1e-5, atol=1e-5)
    updates_CD[:f] += 3
    ours = geometric_median(updates_CD, nu=0.1)
    assert_close(ours, byzfl.GeometricMedian(nu=0.1, T=200)(updates_CD), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def flwr():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("flwr.server.strategy.aggregate")


def test_agreement_with_flwr(flwr):
    n_rows, f = 19, 4
    updates_CD = normal(n_rows, 300)
    counts_C = torch.randint(1, 100, (n_rows,), generator=generator(0, "counts"))
    clients = [([row.numpy()], int(count)) for row, count in zip(updates_CD, counts_C, strict=True)]

    def agree(ours, theirs):
        assert_close(ours, torch.as_tensor(theirs[0]).float(), rtol=1e-5, atol=1e-5)

    agree(mean(updates_CD, counts_C), flwr.aggregate(clients))
    agree(median(updates_CD), flwr.aggregate_median(clients))
    agree(trimmed_mean(updates_CD, f), flwr.aggregate_trimmed_avg(clients, (f + 0.5) / n_rows))
    agree(krum(updates_CD, f), flwr.aggregate_krum(clients, f, 0))
    agree(multi_krum(updates_CD, f, weights_C=counts_C), flwr.aggregate_krum(clients, f, n_rows - f))
    agree(multi_krum(updates_CD, f, m=5, weights_C=counts_C), flwr.aggregate_krum(clients, f, 5))
    agree(bulyan(updates_CD, f), flwr.aggregate_bulyan(list(clients), f, flwr.aggregate_krum, to_keep=0))


# --- behaviour ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregator", "n_clients", "message"),
    [
        (Krum(n_byzantine=2), 5, r"Krum needs C > 2f \+ 2, got C=5, f=2"),
        (Krum(n_byzantine=20), 42, r"Krum needs C > 2f \+ 2, got C=42, f=20"),
        (MultiKrum(n_byzantine=2), 6, r"Multi-Krum needs C > 2f \+ 2, got C=6, f=2"),
        (MultiKrum(n_byzantine=1, m=7), 7, r"Multi-Krum needs 1 <= m <= C - f, got m=7, C=7, f=1"),
        (TrimmedMean(n_byzantine=2), 4, r"trimmed mean needs C > 2f, got C=4, f=2"),
        (Bulyan(n_byzantine=2), 10, r"Bulyan needs C >= 4f \+ 3, got C=10, f=2"),
    ],
)
def test_preconditions_name_their_numbers(aggregator, n_clients, message):
    with pytest.raises(ValueError, match=message):
        aggregator.check(n_clients)
    with pytest.raises(ValueError, match=message):
        aggregator(normal(n_clients, 3))


@pytest.mark.parametrize("function", [krum, multi_krum, trimmed_mean, bulyan])
def test_functions_check_for_themselves(function):
    with pytest.raises(ValueError, match="got C=4, f=2"):
        function(normal(4, 3), 2)
    with pytest.raises(ValueError, match="f=-1"):
        function(normal(9, 3), -1)


def test_configuration_errors():
    build = registry("aggregator").build
    for value, message in [
        ({"name": "krum"}, "n_byzantine: required"),
        ({"name": "krum", "n_byzantine": -1}, "n_byzantine: .*greater than or equal to 0, got -1"),
        ({"name": "trimmed_mean"}, "either n_byzantine or fraction"),
        ({"name": "trimmed_mean", "n_byzantine": 1, "fraction": 0.1}, "either n_byzantine or fraction"),
        ({"name": "trimmed_mean", "fraction": 0.5}, "fraction: .*less than 0.5, got 0.5"),
        ({"name": "geometric_median", "nu": 0}, "nu: .*greater than 0"),
        ({"name": "medien"}, "did you mean 'median'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(value)


@pytest.mark.parametrize("name", registry("aggregator").names())
def test_shipped_configurations_build_and_run(name):
    aggregator = registry("aggregator").build(name)
    assert aggregator.name == name
    assert called(aggregator.resolved(50), normal(50, 5)).update.isfinite().all()


@pytest.mark.parametrize(("fraction", "n_clients", "cut"), [(0.2, 50, 10), (0.29, 100, 29), (0.25, 5, 1), (0.1, 9, 0)])
def test_fraction_of_the_trimmed_mean(fraction, n_clients, cut):
    rule = TrimmedMean(fraction=fraction)
    assert rule.tolerated(n_clients) == cut
    updates_CD = normal(n_clients, 7)
    assert torch.equal(rule(updates_CD).update, trimmed_mean(updates_CD, cut))


def test_a_rule_tolerates_fewer_once_rows_are_gone():
    assert Krum(n_byzantine=10).without(4) == Krum(n_byzantine=6)
    assert Krum(n_byzantine=10, squared=False).without(20) == Krum(n_byzantine=0, squared=False)
    assert MultiKrum(n_byzantine=10, m=40).without(10) == MultiKrum(n_byzantine=0, m=40)
    assert MultiKrum(n_byzantine=10, m=40).without(15) == MultiKrum(n_byzantine=0, m=35)
    assert Median().without(3) == Median()
    for rule in (Krum(n_byzantine=20), MultiKrum(n_byzantine=20, m=30), TrimmedMean(n_byzantine=24)):
        for removed in range(47):
            rule.without(removed).check(50 - removed)
    for removed in range(47):
        Bulyan(n_byzantine=11).without(removed).check(50 - removed)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_non_finite_rows_are_counted_as_malicious(case):
    updates_CD = normal(15, 2000)
    clean = called(case.dropping(torch.arange(15) < 3), updates_CD[3:])
    updates_CD[0] = torch.nan
    updates_CD[1, 5], updates_CD[2, 7] = torch.inf, -torch.inf
    result = called(case, updates_CD, torch.ones(15))
    assert_close(result.update, clean.update)
    assert not result.kept[:3].any()
    assert result.scores is None or (result.scores[:3] == torch.inf).all()


def test_too_few_finite_rows_is_a_clear_error():
    updates_CD = normal(6, 4)
    updates_CD[:4] = torch.nan
    with pytest.raises(ValueError, match=r"Krum needs C > 2f \+ 2, got C=2, f=0 \(4 of 6 updates contain NaN or Inf\)"):
        Krum(n_byzantine=1)(updates_CD)
    with pytest.raises(ValueError, match="all 6 updates contain NaN or Inf"):
        Mean()(updates_CD * torch.inf)
    with pytest.raises(ValueError, match=r"not all zero, got \[0.0, 0.0\] \(4 of 6"):
        Mean()(updates_CD, torch.tensor([1, 1, 1, 1, 0.0, 0.0]))


def test_rows_whose_sum_overflows_are_finite():
    updates_CD = torch.full((5, 8), 3e38)
    assert Median()(updates_CD).kept.all()


@pytest.mark.parametrize("updates_CD", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 3, dtype=torch.long)])
def test_inputs_of_the_wrong_kind(updates_CD):
    with pytest.raises(ValueError, match=r"floating point of shape \[C, D\]"):
        Mean()(updates_CD)


@pytest.mark.parametrize("case", [Mean(), Median(), GeometricMedian(), TrimmedMean(n_byzantine=0)], ids=repr)
def test_one_client_only(case):
    updates_CD = normal(1, 5)
    assert_close(case(updates_CD).update, updates_CD[0])


def test_weights():
    updates_CD, weights_C = normal(9, 40, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 0])
    shares_C = weights_C.double() / weights_C.sum()
    assert_close(mean(updates_CD, weights_C), shares_C @ updates_CD)
    assert Mean()(updates_CD, weights_C).kept.tolist() == [True] * 8 + [False]
    repeated = updates_CD.repeat_interleave(weights_C, 0)
    assert_close(geometric_median(updates_CD, weights_C=weights_C), geometric_median(repeated), rtol=1e-5, atol=1e-5)
    best = krum_scores(updates_CD, 2).argsort()[:4]
    chosen = weights_C[best].double() / weights_C[best].sum()
    assert_close(multi_krum(updates_CD, 2, m=4, weights_C=weights_C), chosen @ updates_CD[best])
    for rule in (Krum(n_byzantine=2), TrimmedMean(n_byzantine=2), Median(), Bulyan(n_byzantine=1)):
        assert torch.equal(rule(updates_CD, weights_C).update, rule(updates_CD).update)


def test_sixteen_bits_are_summed_in_more():
    updates_CD = torch.full((301, 1100), 1.0, dtype=torch.bfloat16)  # 256 + 1 = 256 in bfloat16
    for value in (mean(updates_CD, torch.ones(301)), trimmed_mean(updates_CD, 3), mean(updates_CD)):
        assert value.dtype == torch.bfloat16
        assert_close(value, updates_CD[0])


@pytest.mark.parametrize("size", [1e3, 1e8, 1e20, 1e30])
def test_geometric_median_stands_against_any_size(size):
    updates_CD = normal(25, 300)
    updates_CD[:12] = size
    assert (geometric_median(updates_CD) - updates_CD[12:].mean(0)).norm() < 40 * 300**0.5 / 5


# --- influence ---------------------------------------------------------------------------------------------------------


def naive_influence(updates_CD, first, last):
    """Equal values of a coordinate share the places that they hold among the surviving ranks."""
    counts_C = torch.zeros(len(updates_CD), dtype=torch.float64)
    for column in updates_CD.T:
        order = column.argsort(stable=True)
        for rank in range(first, last + 1):
            equal = (column == column[order[rank]]).double()
            counts_C += equal / equal.sum()
    return counts_C / counts_C.sum()


@settings(max_examples=40, deadline=None)
@given(updates_CD=matrices(), data=st.data())
def test_influence_is_the_share_of_surviving_values(updates_CD, data):
    n_rows = len(updates_CD)
    cut = data.draw(st.integers(0, (n_rows - 1) // 2))
    for rule, first, last in [
        (TrimmedMean(n_byzantine=cut), cut, n_rows - cut - 1),
        (Median(), (n_rows - 1) // 2, n_rows // 2),
        (Median(lower=True), (n_rows - 1) // 2, (n_rows - 1) // 2),
    ]:
        truth = naive_influence(updates_CD, first, last)
        assert_close(rule.influence(updates_CD).double(), truth, rtol=0, atol=1e-5)


def test_influence_of_bulyan():
    updates_CD = normal(7, 3000)
    updates_CD[0] += 50
    result = Bulyan(n_byzantine=1)(updates_CD)
    influence_C = Bulyan(n_byzantine=1).influence(updates_CD, result=result)
    chosen = updates_CD[result.kept]
    nearest = (chosen - chosen.median(0).values).abs().argsort(0)[:3]
    truth = torch.zeros(7)
    truth[result.kept] = nearest.flatten().bincount(minlength=5) / nearest.numel()
    assert influence_C[0] == 0
    assert_close(influence_C, truth, rtol=0, atol=1e-6)


def test_influence_of_rules_that_keep_rows():
    updates_CD = normal(9, 30)
    assert Mean().influence(updates_CD).tolist() == pytest.approx([1 / 9] * 9)
    assert Krum(n_byzantine=2).influence(updates_CD).sort().values.tolist() == [0] * 8 + [1]
    updates_CD[3] = torch.nan
    for rule in (Median(), TrimmedMean(n_byzantine=2), MultiKrum(n_byzantine=2), Bulyan(n_byzantine=1)):
        influence_C = rule.influence(updates_CD)
        assert influence_C[3] == 0
        assert float(influence_C.sum()) == pytest.approx(1)


@pytest.mark.parametrize("function", [trimmed_mean, krum, bulyan])
def test_extra_memory_is_bounded(function):
    """Peak of what torch allocates beside the input, at a size where blocks are small against it."""
    updates_CD = torch.randn(50, 600_000, generator=generator(0, "memory"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function(updates_CD, 10)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert 0 < peak <= 0.3 * updates_CD.nbytes


@pytest.mark.parametrize("rule", [Krum(n_byzantine=1), MultiKrum(n_byzantine=1)], ids=["krum", "multi_krum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_tell_whether_rows_are_finite(rule: Aggregator, dtype: torch.dtype):
    """Without a pass that looks for them, rows with NaN or Inf are still left out, and huge rows are not."""
    updates_CD = torch.randn(7, 5000, generator=generator(0, "rows")).to(dtype)
    for value in (float("nan"), float("inf"), -float("inf")):
        spoiled_CD = updates_CD.clone()
        spoiled_CD[2, 4999] = value
        assert not rule.aggregate(spoiled_CD, None).scores.isfinite().all()
        expected = rule.without(1)(updates_CD[[0, 1, 3, 4, 5, 6]])
        torch.testing.assert_close(rule(spoiled_CD).update, expected.update, rtol=0, atol=0)
    huge_CD = updates_CD * torch.finfo(dtype).max ** 0.6
    assert rule(huge_CD).kept.any()
    assert bool(rule(huge_CD).update.isfinite().all())


def test_the_mean_looks_for_rows_that_are_not_finite_only_where_it_is_not_finite_itself(
    monkeypatch: pytest.MonkeyPatch,
):
    updates_CD = normal(5, 40)
    huge_CD, spoiled_CD = updates_CD * torch.finfo(updates_CD.dtype).max ** 0.99, updates_CD.clone()
    spoiled_CD[1, 3] = torch.inf
    torch.testing.assert_close(Mean()(spoiled_CD).update, updates_CD[[0, 2, 3, 4]].mean(0))
    assert Mean()(spoiled_CD).kept.tolist() == [True, False, True, True, True]
    assert bool(Mean()(huge_CD).update.isfinite().all())
    monkeypatch.setattr("fl_lightning.aggregators._base.finite_rows", lambda rows: pytest.fail("a second pass"))
    assert Mean()(updates_CD).kept.all()


def test_a_row_that_is_not_finite_may_make_room():
    """Four rows are too few for f = 1; three of which none is arbitrary are enough for f = 0."""
    updates_CD = torch.tensor([[0.0], [1.0], [torch.nan], [5.0]])
    assert Krum(n_byzantine=1)(updates_CD).update.tolist() in ([0.0], [1.0])
