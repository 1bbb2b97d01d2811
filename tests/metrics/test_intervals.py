"""Intervals stay where the figure can be, and no winner is named that they do not support."""

import math

import numpy as np
import pytest

from fl_lightning._matrix import Matrix, MatrixOutcome
from fl_lightning.metrics import bounds, interval
from fl_lightning.runs import Campaign, Cell, Outcome


def test_the_interval_of_a_share_ends_at_one():
    found = interval([0.999, 0.998, 1.0], bounds("attack/success"))
    assert found.high == 1.0
    assert found.low == pytest.approx(0.999 - found.half)
    assert str(found) == "0.999 [0.997, 1.000]"


def test_cutting_off_what_cannot_be_takes_no_coverage_away():
    """Of 2,000 samples of shares near 1 both intervals hold the true mean equally often."""
    random = np.random.default_rng(0)
    draws = random.beta(20, 0.5, size=(2000, 5))
    true = 20 / 20.5
    cut = [interval(row, (0.0, 1.0)) for row in draws.tolist()]
    plain = [interval(row) for row in draws.tolist()]
    held = sum(one.low <= true <= one.high for one in cut)
    assert held == sum(one.low <= true <= one.high for one in plain)
    assert sum(one.high - one.low for one in cut) < sum(one.high - one.low for one in plain)


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.4]])
def test_fewer_than_three_seeds_have_no_interval(values: list[float]):
    found = interval(values, (0.0, 1.0))
    assert math.isnan(found.low)
    assert not found.sure
    assert "±" not in str(found)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("global/accuracy", (0, 1)),
        ("defense/clip/false_alarm_rate", (0, 1)),
        ("impact/accuracy_drop", (-1, 1)),
        ("stealth/opposition", (-1, 1)),
        ("time/round", (-math.inf, math.inf)),
        ("attack/persistence", (-math.inf, math.inf)),
    ],
)
def test_what_a_metric_cannot_leave(metric: str, expected: tuple[float, float]):
    assert bounds(metric) == expected


def matrix(cells: dict[str, list[float]]) -> MatrixOutcome:
    """Servers by name with the success of one attack for each seed."""
    seeds = tuple(range(len(next(iter(cells.values())))))
    asked = Matrix(base="digits", attacks={"flip": "label_flip"}, servers={name: {} for name in cells}, seeds=seeds)
    outcomes = {
        Cell(f"flip | {name}", seed): Outcome("run", "flip", 1, {"attack/success": value})
        for name, values in cells.items()
        for seed, value in enumerate(values)
    }
    return MatrixOutcome(asked, Campaign("parent", outcomes, {}))


def test_a_winner_is_named_where_the_paired_difference_says_so():
    told = matrix({"krum": [0.1, 0.2, 0.3], "mean": [0.8, 0.91, 0.99]})
    assert told.rivals() == []
    assert told.verdict() == "the best worst case: krum"


def test_no_winner_is_named_where_it_does_not():
    unsure = matrix({"krum": [0.30, 0.31, 0.47], "mean": [0.36, 0.30, 0.46]})
    assert unsure.rivals() == ["mean"]
    assert "cannot be told from mean" in unsure.verdict()


def test_two_seeds_tell_nothing_apart():
    assert matrix({"krum": [0.1, 0.1], "mean": [0.9, 0.9]}).rivals() == ["mean"]
