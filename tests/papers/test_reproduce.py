"""The papers' tables: numbered claims, the rule that judges them, and verdicts that come from MLflow alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import NOISE, TINY

from fl_lightning import cli, tracking
from fl_lightning.errors import ConfigError
from fl_lightning.papers import Records, experiments, find_tables, reproduce, write_verdicts
from fl_lightning.papers._claims import (
    PaperTable,
    TableCell,
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
