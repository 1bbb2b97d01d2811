"""The papers' tables: numbered claims, the rule that judges them, and verdicts that come from MLflow alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOISE, TINY
from scipy.stats import ttest_rel

from fl_lightning import cli, tracking
from fl_lightning.errors import ConfigError
from fl_lightning.metrics import Interval
from fl_lightning.papers import Judged, Records, Reproduction, experiments, find_tables, reproduce, write_verdicts
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
from fl_lightning.papers._pictures import draw_table
from fl_lightning.paths import results_folder

SMALL: dict[str, Any] = {
    "title": "noise",
    "setting": "none",
    "base": TINY | {"rounds": 3},
    "rows": NOISE,
    "columns": {"mean": {}, "second round": {"over": 2}, "median": {"aggregator": "median"}},
    "sizes": {
        "quick": {"seeds": [0, 1, 2], "minutes": 1, "up_to": 3},
        "full": {"seeds": [0, 1], "minutes": 2, "leave_out": ["quiet"]},
    },
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"printed": [{"id": "N", "printed": {"loud": [0.1]}}]}, "expected 3 printed values, got 1"),
        ({"orders": [{"id": "O", "says": "", "higher": "loud", "lower": "silent"}]}, "no cell 'silent'"),
        ({"bounds": [{"id": "B", "says": "", "row": "loud"}]}, "either at_least or at_most"),
        ({"sizes": {"quick": {"seeds": [0], "minutes": 1}}}, "at least 2"),
    ],
)
def test_bad_tables_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        PaperTable(**SMALL | change)


@pytest.mark.usefixtures("store_folder")
def test_the_figure_has_a_line_a_row_and_a_cross_a_printed_value():
    table = PaperTable(**SMALL)
    loud, quiet = ({0: level, 1: level, 2: 2 * level} for level in (0.1, 0.4))
    metric = "global/accuracy"
    figure = draw_table(
        table,
        {(TableCell("loud", "second round"), metric): [loud, quiet], (TableCell("quiet", "mean"), metric): [quiet]},
    )
    mean, median, spare = (*figure.axes, None)
    assert spare is None  # the second round is one of the mean's runs, not a panel of its own
    assert [axes.get_title() for axes in (mean, median)] == ["global/accuracy, mean", "global/accuracy, median"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in mean.lines if line.get_linestyle() == "-"}
    assert lines == {"loud": [[1, 0.25], [2, 0.25], [3, 0.5]], "quiet": [[1, 0.4], [2, 0.4], [3, 0.8]]}
    crosses = [line.get_xydata().tolist() for axes in (mean, median) for line in axes.lines if line.get_marker() == "x"]
    assert crosses == [[[3, 0.1]]]  # nothing was run under the median
    whole = draw_table(table, {(TableCell("quiet", "median"), metric): [{2: 0.3}, {2: 0.5}]}).axes[1]
    assert whole.lines[0].get_xydata().tolist() == [[1, 0.4]]  # the second row, no rounds to tell apart


def test_verdicts_come_from_mlflow_and_equal_runs_are_shared(tmp_path: Path):
    table = PaperTable(**SMALL)
    outcome = reproduce({"own:noise": table, "own:again": table})
    store = tracking.client()
    (experiment,) = {store.get_run(outcome.run_id).info.experiment_id}
    cells = store.search_runs([experiment], "tags.`fl.kind` = 'cell'")
    assert (
        len(cells) == 2 * 2 * 3
    )  # loud and quiet, mean and median, three seeds: a column in time needs no run of its own
    by_claim = {(one.table, one.claim.id): one for one in outcome.judged}
    assert by_claim["own:noise", "N.1"].found == by_claim["own:again", "N.1"].found
    loud = [run for run in cells if run.data.tags["fl.experiment"] == "own:noise | loud | mean"]
    second = [tracking.history(store, run.info.run_id, "global/accuracy")[1] for run in loud]
    quiet = [run for run in cells if run.data.tags["fl.experiment"] == "own:noise | quiet | mean"]
    second_quiet = [tracking.history(store, run.info.run_id, "global/accuracy")[1] for run in quiet]
    difference = (sum(second_quiet) - sum(second)) / 3
    assert by_claim["own:noise", "O.2"].found.mean == pytest.approx(difference)
    assert by_claim["own:noise", "B"].verdict == "confirmed"  # no accuracy lies below 0
    assert sum(outcome.counts().values()) == 12
    records = Records(results_folder())
    assert len(records.of("own:noise")) == len(records.of("own:again")) == len(cells)
    one = records.of("own:noise")[next(iter(records.of("own:noise")))]
    here = tracking.environment()
    assert (one.device, one.cpu, one.threads) == (here["device"], here["cpu"], int(here["threads"]))
    assert one.seconds > 0
    told: list[str] = []
    again = reproduce({"own:noise": table}, tell=told.append)
    assert told == ["12 runs are recorded; nothing is left to run"]
    assert len(store.search_runs([experiment], "tags.`fl.kind` = 'cell'")) == len(cells)  # nothing is run twice
    assert [one.found for one in again.judged] == [one.found for one in outcome.judged[:6]]
    files = {file.path for file in store.list_artifacts(outcome.run_id)}
    assert {"verdicts.md", "verdicts.json", "verdicts.png"} <= files
    figures = {file.path for file in store.list_artifacts(outcome.run_id, "figures")}
    assert figures == {"figures/own-noise.png", "figures/own-again.png"}
    target = tmp_path / "PAGE.md"
    target.write_text("before\n<!-- verdicts -->\nof yesterday\n<!-- /verdicts -->\nafter\n")
    write_verdicts(again, str(target))
    assert "of yesterday" not in target.read_text()
    assert target.read_text().count("| N.1 |") == 1
    counts = again.counts()
    assert f"6 claims, {6 - counts['undecided']} decided;" in target.read_text()
    assert f"| own | {counts['confirmed']} | {counts['stronger']} |" in target.read_text()
    with pytest.raises(ConfigError, match="to write between"):
        write_verdicts(again, str(Path(__file__).parents[1] / "conftest.py"))


@pytest.mark.usefixtures("store_folder")
def test_finished_runs_are_found_again_by_what_their_figures_depend_on():
    table = {"title": "one", "setting": "none", "base": TINY | {"rounds": 2}, "rows": {"clean": {}}}
    table |= {"sizes": {"quick": {"seeds": [0, 1], "minutes": 1, "up_to": 2}}}
    told: list[str] = []
    reproduce({"own:one": PaperTable(**table)}, tell=told.append)
    assert told[0].startswith("0 runs are recorded; 2 are left: about")
    store = tracking.client()
    (experiment,) = [one.experiment_id for one in store.search_experiments() if one.name != "Default"]
    cells = store.search_runs([experiment], "tags.`fl.kind` = 'cell'")
    # As if made by a version in which a sweep had another default and the server had no beta2 yet.
    for run in cells:
        recorded = tracking.recorded_text(store, run.info.run_id)
        assert recorded is not None
        text = recorded.replace("pruner: auto", "pruner: median")
        older = "".join(line for line in text.splitlines(True) if not line.startswith("  beta2:"))
        assert older != text != recorded
        store.log_text(run.info.run_id, older, "config.yaml")
        store.set_tag(run.info.run_id, "mlflow.note.content", "what a person has written here is not read")
    broken = store.create_run(experiment, tags={"fl.kind": "cell"})
    store.log_text(broken.info.run_id, "rounds: [none", "config.yaml")
    store.set_terminated(broken.info.run_id, "FINISHED")
    tracked = table | {"base": TINY | {"rounds": 2, "tracking": {"checkpoint_every": 7}}}
    reproduce({"own:two": PaperTable(**tracked)}, records=Records())
    assert len(store.search_runs([experiment], "tags.`fl.kind` = 'cell'")) == len(cells) + 1
    reproduce({"own:longer": PaperTable(**table | {"base": TINY | {"rounds": 3}})}, records=Records())
    assert len(store.search_runs([experiment], "tags.`fl.kind` = 'cell'")) == len(cells) + 1 + 2


def test_a_size_may_leave_rows_out():
    table = PaperTable(**SMALL)
    assert {cell.row for cell in experiments(table, "full")} == {"loud"}
    assert {one.seeds for one in experiments(table, "full").values()} == {(0, 1)}


def test_a_size_may_change_single_rows():
    sizes = {"quick": {"seeds": [0, 1], "minutes": 1, "changes": {"rounds": 5}, "rows": {"loud": {"attack.std": 3.0}}}}
    found = experiments(PaperTable(**SMALL | {"sizes": sizes}), "quick")
    assert {cell.row: one.attack.std for cell, one in found.items()} == {"loud": 3.0, "quiet": 1e-9}
    assert {one.rounds for one in found.values()} == {5}
    with pytest.raises(ValueError, match="no cell 'silent'"):
        PaperTable(**SMALL | {"sizes": {"quick": sizes["quick"] | {"rows": {"silent": {}}}}})


def test_unknown_tables_and_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"own: has no size 'reduced'"):
        reproduce({"own": PaperTable(**SMALL)}, "reduced")
    with pytest.raises(ConfigError, match=r"no paper or table 'cpm'.*cmp"):
        find_tables(["cpm"])


@pytest.mark.usefixtures("store_folder")
def test_the_command_prints_verdicts(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SMALL))
    assert cli.main(["reproduce", str(path), "--jobs", "1", "--fast", "--json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert sum(found["counts"].values()) == len(found["claims"]) == 6
    assert cli.main(["reproduce"]) == 0
    assert "cmp:table-4" in capsys.readouterr().out
    assert cli.main(["reproduce", str(path), "--check", "1"]) == 2  # --fast records nothing
    assert "no record can be run again" in capsys.readouterr().err
    assert cli.main(["reproduce", str(path), "--size", "reduced"]) == 2
    assert "none of these tables has a size reduced" in capsys.readouterr().err
