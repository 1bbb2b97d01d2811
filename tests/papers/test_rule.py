"""The rule by which claims are judged: what confirms a printed value, an order, a limit, several limits together."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fl_lightning.metrics import Interval
from fl_lightning.papers import Judged, Reproduction
from fl_lightning.papers._claims import (
    Bound,
    Joint,
    Limit,
    Order,
    PaperTable,
    Printed,
    TableCell,
    discovery_rates,
    measured,
    p_value,
    read,
    verdict,
)

SMALL: dict[str, Any] = {
    "title": "noise",
    "setting": "none",
    "base": "digits",
    "rows": {"loud": {}, "quiet": {}},
    "columns": {"mean": {}, "second round": {"over": 2}, "median": {"aggregator": "median"}},
    "sizes": {"quick": {"seeds": [0, 1, 2], "minutes": 1, "up_to": 3}},
    "printed": [{"id": "N", "metric": "global/accuracy", "strong": "low", "printed": {"loud": [0.1, None, 0.2]}}],
    "orders": [{"id": "O", "says": "noise matters", "higher": "quiet", "lower": "loud", "metric": "global/accuracy"}],
    "bounds": [
        {"id": "B", "says": "median holds", "row": "loud | median", "metric": "global/accuracy", "at_least": 0.0}
    ],
}


def judge(rule: Printed | Order | Bound | Joint, *values: list[float]) -> str:
    slot = {Printed: "printed", Order: "orders", Bound: "bounds", Joint: "joints"}[type(rule)]
    table = PaperTable(**SMALL | {"printed": [], "orders": [], "bounds": []} | {slot: [rule]})
    claim = next(table.claims())
    return verdict(claim, measured(claim, [dict(enumerate(own)) for own in values]))


def printed(value: float, **more: Any) -> Printed:
    return Printed(id="N", printed={"loud": (value, None, None)}, **more)


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        (printed(0.8), [0.79, 0.81, 0.80], "confirmed"),
        (printed(0.8), [0.90, 0.91, 0.92], "stronger"),
        (printed(0.8, strong="low"), [0.90, 0.91, 0.92], "weaker"),
        (printed(0.8), [0.70, 0.71, 0.72], "weaker"),
        (printed(0.8), [0.10, 0.11, 0.12], "not reproduced"),
        (printed(0.1), [0.01, 0.01, 0.01], "weaker"),  # short by less than four tolerances
        (printed(0.8), [0.20, 0.90, 0.50], "undecided"),
        (printed(0.8), [0.80, 0.60, 0.70], "undecided"),
        (
            printed(0.8),
            [0.72, 0.80, 0.70],
            "undecided",
        ),  # the interval reaches the printed value: that is no confirmation
        (printed(0.8), [0.80, 0.80], "undecided"),  # two seeds have no interval
        (printed(0.85), [0.90, 0.90, 0.90], "confirmed"),  # just the tolerance away
        (printed(0.5, tolerance=0.2), [0.4, 0.35, 0.36], "confirmed"),
    ],
)
def test_printed_values_are_judged_by_the_stated_rule(rule: Printed, values: list[float], expected: str):
    assert judge(rule, values) == expected


ABOVE = Order(id="O", says="above", higher="loud | mean", lower="quiet | mean")


@pytest.mark.parametrize(
    ("factor", "higher", "lower", "expected"),
    [
        (1, [0.8, 0.9, 0.85], [0.1, 0.2, 0.12], "confirmed"),
        (1, [0.1, 0.2, 0.12], [0.8, 0.9, 0.85], "not reproduced"),
        (1, [0.1, 0.9, 0.5], [0.3, 0.4, 0.5], "undecided"),
        (5, [0.5, 0.5, 0.5], [0.12, 0.12, 0.12], "not reproduced"),
        (1, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], "not reproduced"),
    ],
)
def test_orders_are_judged_pair_by_pair(factor: float, higher: list[float], lower: list[float], expected: str):
    assert judge(ABOVE.model_copy(update={"factor": factor}), higher, lower) == expected


def test_an_order_of_magnitudes_is_judged_on_logarithms():
    higher, lower = [1e3, 1e5, 1e4], [1.0, 1.1, 0.9]
    assert judge(ABOVE, higher, lower) == "undecided"
    assert judge(ABOVE.model_copy(update={"log": True}), higher, lower) == "confirmed"
    assert judge(ABOVE.model_copy(update={"log": True, "factor": 1e10}), higher, lower) == "not reproduced"


@pytest.mark.parametrize(
    ("higher", "expected"),
    [
        ([0.51, 0.49, 0.50], "not reproduced"),  # the advantage is surely less than what matters
        ([0.51, 0.52, 0.52], "not reproduced"),  # there, but surely too small to matter
        ([0.54, 0.55, 0.56], "undecided"),  # above 0 for sure, but perhaps too small to matter
        ([0.56, 0.57, 0.58], "undecided"),
        ([0.57, 0.58, 0.59], "confirmed"),
        ([0.60, 0.45, 0.50], "undecided"),
    ],
)
def test_an_advantage_may_be_too_small_to_matter(higher: list[float], expected: str):
    assert judge(ABOVE.model_copy(update={"matters": 0.05}), higher, [0.5, 0.5, 0.5]) == expected


def test_an_order_may_allow_for_a_margin():
    higher, lower = [0.80, 0.81, 0.79], [0.84, 0.84, 0.84]
    assert judge(ABOVE, higher, lower) == "not reproduced"
    assert judge(ABOVE.model_copy(update={"margin": 0.07}), higher, lower) == "confirmed"


@pytest.mark.parametrize(
    ("limits", "values", "expected"),
    [
        ({"at_least": 0.9}, [0.95, 0.96, 0.94], "confirmed"),
        ({"at_least": 0.9}, [0.5, 0.51, 0.52], "not reproduced"),
        ({"at_least": 0.9}, [0.7, 0.99, 0.99], "undecided"),
        ({"at_most": 0.0}, [0.0, 0.0, 0.0], "confirmed"),
        ({"at_most": 0.1}, [0.3, 0.31, 0.3], "not reproduced"),
    ],
)
def test_limits(limits: dict[str, float], values: list[float], expected: str):
    assert judge(Bound(id="B", says="limit", row="loud | mean", **limits), values) == expected


@pytest.mark.parametrize(
    ("success", "gap", "expected"),
    [
        ([0.95, 0.96, 0.94], [0.02, 0.03, 0.02], "confirmed"),
        ([0.95, 0.96, 0.94], [0.70, 0.72, 0.71], "not reproduced"),
        ([0.08, 0.08, 0.08], [0.02, 0.03, 0.02], "not reproduced"),
        ([0.95, 0.10, 0.95], [0.02, 0.03, 0.70], "undecided"),  # each seed keeps one of the two, but never both
    ],
)
def test_limits_may_have_to_be_kept_together(success: list[float], gap: list[float], expected: str):
    limits = (Limit(metric="attack/success", at_least=0.9), Limit(metric="stealth/accuracy_gap", at_most=0.1))
    rule = Joint(id="J", says="both", row="loud | mean", limits=limits)
    assert judge(rule, success, gap) == expected
    with pytest.raises(ValueError, match="give either at_least or at_most"):
        Limit(at_least=0.1, at_most=0.2)


def test_no_claim_is_confirmed_by_being_imprecise():
    """A true deviation of 0.1 is confirmed as no deviation no more often with three seeds than with nine: hardly ever."""
    random = np.random.default_rng(0)
    confirmed = {
        n: sum(judge(printed(0.5), random.normal(0.6, 0.05, n).tolist()) == "confirmed" for _ in range(300))
        for n in (3, 9)
    }
    assert max(confirmed.values()) <= 3


def test_a_limit_may_be_on_the_difference_from_another_row():
    """Rounds and loss of accuracy together, the loss against another row with the same seed."""
    limits = (
        Limit(metric="attack/persistence", at_most=5),
        Limit(metric="global/accuracy", less="quiet", at_least=-0.05),
    )
    rule = Joint(id="J", says="quick and cheap", row="loud | mean", limits=limits)
    table = PaperTable(**SMALL | {"printed": [], "orders": [], "bounds": [], "joints": [rule]})
    (claim,) = table.claims()
    assert claim.cells == (TableCell("loud", "mean"), TableCell("loud", "mean"), TableCell("quiet", "mean"))
    assert [one.metric for one in claim.readings] == ["attack/persistence", "global/accuracy", "global/accuracy"]
    rounds, clean = [2.0, 3.0, 2.0], [0.90, 0.80, 0.85]
    for lost, expected in (([0.02, 0.03, 0.02], "confirmed"), ([0.30, 0.32, 0.31], "not reproduced")):
        accuracies = [before - one for before, one in zip(clean, lost, strict=True)]
        assert judge(rule, rounds, accuracies, clean) == expected
        opposite = {"confirmed": "not reproduced", "not reproduced": "confirmed"}[expected]
        assert judge(rule.model_copy(update={"fails": True}), rounds, accuracies, clean) == opposite
    wrong = rule.model_copy(update={"limits": (limits[0], limits[1].model_copy(update={"less": "nowhere"}))})
    with pytest.raises(ValueError, match="no cell 'nowhere'"):
        PaperTable(**SMALL | {"joints": [wrong.model_dump()]})


def test_p_values_are_those_of_students_test():
    claim = next(PaperTable(**SMALL | {"printed": [], "bounds": [], "orders": [ABOVE]}).claims())
    higher, lower = [0.3, 0.5, 0.4, 0.45], [0.2, 0.1, 0.35, 0.3]
    expected = ttest_rel(higher, lower, alternative="greater").pvalue
    found = measured(claim, [dict(enumerate(higher)), dict(enumerate(lower))])
    assert p_value(claim, found) == pytest.approx(expected)


def test_p_values_of_a_family_are_adjusted():
    # by hand: sorted .01 .02 .03 .04 times 4/1 4/2 4/3 4/4 give .04 each
    assert discovery_rates([0.04, 0.01, math.nan, 0.03, 0.02])[:2] == pytest.approx([0.04, 0.04])
    assert math.isnan(discovery_rates([0.1, math.nan])[1])


def test_what_follows_from_other_claims_is_not_counted_again():
    table = PaperTable(**SMALL | {"orders": [{**SMALL["orders"][0], "follows": "it is the same"}]})
    claims = list(table.claims())
    judged = tuple(Judged("own:t", claim, Interval(0.5, 0.01, n=3), "confirmed") for claim in claims)
    outcome = Reproduction("run", judged, ())
    assert sum(bool(claim.follows) for claim in claims) == 3
    assert outcome.counts()["confirmed"] == len(claims) - 3
    assert sum(math.isnan(rate) for rate in outcome.rates()) == 3
    assert "(follows: it is the same)" in outcome.markdown()


def test_a_limit_that_was_chosen_here_is_not_shown_as_printed():
    own, theirs = (
        next(
            PaperTable(
                **SMALL | {"printed": [], "orders": [], "bounds": [{**SMALL["bounds"][0], "printed": is_theirs}]}
            ).claims()
        )
        for is_theirs in (False, True)
    )
    assert (own.printed, theirs.printed) == (None, 0.0)


def test_nothing_measured_is_undecided():
    assert judge(printed(0.5), []) == "undecided"
    assert judge(ABOVE, [0.5], []) == "undecided"


@pytest.mark.parametrize(
    ("over", "expected"),
    [("last", 9.0), ("third", 7.5), ("half", 7.0), ("all", 4.5), (1, 0.0), ((2, 4), 2.0), (11, None)],
)
def test_windows_count_rounds_from_one(over: Any, expected: float | None):
    history = {step: float(step) for step in range(10)}
    assert read(history, 10, over) == expected
    assert read({}, 10, over) is None


def test_claims_are_numbered_row_by_row():
    claims = list(PaperTable(**SMALL).claims())
    assert [claim.id for claim in claims] == ["N.1", "N.2", "O.1", "O.2", "O.3", "B"]
    assert [claim.printed for claim in claims[:2]] == [0.1, 0.2]
    assert claims[1].cells == (TableCell("loud", "median"),)
    assert [reading.over for reading in claims[3].readings] == [2, 2]


def test_each_end_of_an_order_is_read_in_its_own_rounds():
    order = {"id": "O", "says": "", "higher": "loud | mean", "lower": "loud | second round"}
    (claim,) = PaperTable(**SMALL | {"printed": [], "bounds": [], "orders": [order]}).claims()
    assert [reading.over for reading in claim.readings] == ["last", 2]
