"""What the classic rules refuse, with its numbers, and how many malicious rows they tolerate."""

import pytest
import torch
from random_rows import normal

from fl_lightning.aggregators import (
    Bulyan,
    Krum,
    Mean,
    Median,
    MultiKrum,
    TrimmedMean,
    bulyan,
    krum,
    multi_krum,
    trimmed_mean,
)
from fl_lightning.errors import ConfigError
from fl_lightning.registry import registry


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


def test_too_few_finite_rows_is_a_clear_error():
    updates_CD = normal(6, 4)
    updates_CD[:4] = torch.nan
    with pytest.raises(ValueError, match=r"Krum needs C > 2f \+ 2, got C=2, f=0 \(4 of 6 updates contain NaN or Inf\)"):
        Krum(n_byzantine=1)(updates_CD)
    with pytest.raises(ValueError, match="all 6 updates contain NaN or Inf"):
        Mean()(updates_CD * torch.inf)
    with pytest.raises(ValueError, match=r"not all zero, got \[0.0, 0.0\] \(4 of 6"):
        Mean()(updates_CD, torch.tensor([1, 1, 1, 1, 0.0, 0.0]))


@pytest.mark.parametrize("updates_CD", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 3, dtype=torch.long)])
def test_inputs_of_the_wrong_kind(updates_CD):
    with pytest.raises(ValueError, match=r"floating point of shape \[C, D\]"):
        Mean()(updates_CD)
