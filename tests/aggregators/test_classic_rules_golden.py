"""The classic rules against numbers worked by hand and against independent libraries."""

import warnings

import pytest
import torch
from random_rows import normal
from torch.testing import assert_close

from fl_lightning.aggregators import (
    Krum,
    TrimmedMean,
    bulyan,
    geometric_median,
    krum,
    krum_scores,
    mean,
    median,
    multi_krum,
    trimmed_mean,
)
from fl_lightning.randomness import generator

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
