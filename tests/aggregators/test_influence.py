"""Whose values an aggregate is made of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_rows import matrices, normal
from torch.testing import assert_close

from fl_lightning.aggregators import Bulyan, Krum, Mean, Median, MultiKrum, TrimmedMean


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
