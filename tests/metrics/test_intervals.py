"""Intervals stay where the figure can be, and no winner is named that they do not support."""

import math

import numpy as np
import pytest

from fl_lightning._matrix import Matrix, MatrixOutcome
from fl_lightning.metrics import bounds, interval
from fl_lightning.runs import Campaign, Cell, Outcome


def test_the_interval_of_a_share_by_hand():
    """p = 0.9 and h = t(2) 0.1 / sqrt(3) = 0.248414: logit 0.9 -+ h / 0.09 = 2.197225 -+ 2.760156."""
    found = interval([0.8, 0.9, 1.0], bounds("attack/success"))
    assert found.half == pytest.approx(0.248414, abs=1e-6)
    assert found.low == pytest.approx(1 / (1 + math.exp(0.562931)), abs=1e-5)
    assert found.high == pytest.approx(1 / (1 + math.exp(-4.957381)), abs=1e-5)
    assert str(found) == "0.900 [0.363, 0.993]"


@pytest.mark.parametrize(
    "values", [[0.0, 0.0, 0.01], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0] * 3, [0.999, 0.998, 1.0], [0.5, 0.5, 0.6]]
)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0)])
def test_no_interval_leaves_its_ends(values: list[float], ends: tuple[float, float]):
    found = interval(values, ends)
    assert ends[0] <= found.low <= found.mean <= found.high <= ends[1]
    mirrored = interval([-value for value in values], (-ends[1], -ends[0]))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_figures_that_lie_close_together_have_students_interval():
    found = interval([0.61, 0.611, 0.609], (0.0, 1.0))
    assert (found.low, found.high) == pytest.approx((found.mean - found.half, found.mean + found.half), abs=1e-5)
    assert str(found) == "0.610 ± 0.002"


def test_shares_near_an_end_are_held_more_often_than_by_students_interval():
    """Of 1,000 samples of three seeds near 1; so skewed that not even this interval holds all of 95 %."""
    draws = np.random.default_rng(0).beta(50, 1, size=(1000, 3)).tolist()

    def held(ends: tuple[float, float]) -> float:
        return float(np.mean([found.low <= 50 / 51 <= found.high for found in (interval(row, ends) for row in draws)]))

    assert held((0.0, 1.0)) > 0.92 > 0.9 > held((-math.inf, math.inf))


def test_the_p_value_agrees_with_the_interval():
    found = interval([0.8, 0.9, 1.0], (0.0, 1.0))
    assert found.above(found.low) == pytest.approx(0.025)
    assert found.above(0.0) == 0.0
    assert found.above(1.0) == 1.0


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
    assert unsure.verdict() == "no best worst case: krum cannot be told from mean on these seeds"


def test_two_seeds_tell_nothing_apart():
    assert matrix({"krum": [0.1, 0.1], "mean": [0.9, 0.9]}).rivals() == ["mean"]
