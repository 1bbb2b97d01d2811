"""Records of runs: a digest that new settings do not change, files that nothing damages, work that is not done twice."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import NOISE, TINY

from fl_lightning import tracking
from fl_lightning.config import Experiment, load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.papers import Records, TableRuns, _reproduce, check, digest, judge, reproduce
from fl_lightning.papers._claims import PaperTable, TableCell
from fl_lightning.papers._records import VERSIONS, Record, chosen
from fl_lightning.papers._reproduce import _more
from fl_lightning.runs import one_seed

TABLE: dict[str, Any] = {
    "title": "noise",
    "setting": "none",
    "base": TINY | {"rounds": 2},
    "rows": NOISE,
    "sizes": {
        "quick": {"seeds": [0, 1, 2], "minutes": 1, "up_to": 5},
        "full": {"seeds": [0, 1, 2], "minutes": 2, "up_to": 3, "changes": {"rounds": 4}},
    },
    "orders": [{"id": "O", "says": "noise matters", "higher": "quiet", "lower": "loud", "metric": "global/accuracy"}],
}


def record(config: str = "c", seed: int = 0, run: str = "row", **figures: list[float | None]) -> Record:
    versions = {"python": "3.12", "torch": "2.11"}
    return Record(
        run=run,
        config=config,
        seed=seed,
        figures=figures or {"m": [0.5]},
        seconds=1.5,
        revision="abc",
        device="x86_64",
        cpu="some",
        threads=1,
        versions=versions,
    )


def recorded_of(runs: TableRuns, size: Any, values: dict[str, list[float]]) -> None:
    """Records of a table's cells, made up: row -> one value a seed."""
    for cell, (config, one) in runs.cells(size).items():
        for seed, value in enumerate(values.get(cell.row, ())):
            runs.records.add(
                runs.name, [record(config, seed, cell.row, **{"global/accuracy": [None] * (one.rounds - 1) + [value]})]
            )


def test_a_record_says_only_what_differs_from_the_defaults():
    experiment = load(TINY)
    assert chosen(experiment) == {
        "rounds": 3,
        "data": {"name": "digits", "train_samples": 200, "test_samples": 100},
        "partition": {"name": "iid", "clients": 5},
        "model": {"name": "mlp", "hidden": [8]},
        "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.2}},
        "participation": {"name": "full", "malicious": 1},
        "tracking": {"register": "never", "models": False},
    }
    spelt_out = load(experiment.to_dict())
    assert digest(spelt_out) == digest(experiment)


def test_the_digest_is_of_what_figures_depend_on():
    experiment = load(TINY)
    for aside in ({"seed": 7}, {"seeds": [1, 2]}, {"tracking.models": False}, {"sweep.trials": 9}):
        assert digest(experiment.override(aside)) == digest(experiment)
    for change in ({"rounds": 4}, {"server.lr": 0.5}, {"client.optimizer.lr": 0.1}, {"aggregator": "median"}):
        assert digest(experiment.override(change)) != digest(experiment)
    assert digest(experiment.faster()) != digest(experiment)


def test_digests_stay_what_they_are():
    """Records in the repository are found by them: whoever changes how they are made leaves all records behind."""
    assert digest(load(TINY)) == "16565081e453"


def test_records_come_back_as_they_were_and_files_are_sorted(tmp_path: Path):
    records = Records(tmp_path)
    odd = record("b", 1, "second", **{"global/loss": [math.nan, None, 1e300, math.inf, 0.1 + 0.2]})
    records.add("cmp:table-4", [odd, record("b", 0, "second")])
    records.add("cmp:table-4", [record("a", 3, "first")])
    lines = (tmp_path / "cmp-table-4.jsonl").read_text().splitlines()
    assert [(json.loads(line)["run"], json.loads(line)["seed"]) for line in lines] == [
        ("first", 3),
        ("second", 0),
        ("second", 1),
    ]
    again = Records(tmp_path).find("cmp:table-4", "b", 1)
    assert again.model_dump_json() == odd.model_dump_json()
    assert again.history("global/loss").keys() == {0, 2, 3, 4}
    assert again.history("global/loss")[4] == 0.1 + 0.2


def test_a_damaged_line_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Records(tmp_path).add("own:t", [record(seed=seed) for seed in range(3)])
    path = tmp_path / "own-t.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    (tmp_path / ".own-t.jsonl.123").write_text("what a killed process has left")
    assert set(Records(tmp_path).of("own:t")) == {("c", 0), ("c", 1)}
    assert "lines 3 are no records" in caplog.text
    Records(tmp_path).add("own:t", [record(seed=2)])
    assert len(Records(tmp_path)) == 3


def test_writers_side_by_side_lose_nothing(tmp_path: Path):
    def write(number: int) -> None:
        Records(tmp_path).add("own:t", [record(seed=number)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert {seed for _, seed in Records(tmp_path).of("own:t")} == set(range(40))


def test_figures_of_two_tables_add_up():
    records = Records()
    records.add("own:t", [record(a=[1.0])])
    assert records.find("own:other", "c", 0, {"a"}) is not None  # another table shares the run
    assert records.find("own:other", "c", 0, {"a", "b"}) is None
    records.add("own:t", [record(b=[2.0])])
    assert records.find("own:t", "c", 0, {"a", "b"}).figures == {"a": [1.0], "b": [2.0]}


def test_a_claim_is_decided_from_the_largest_size_whose_runs_are_all_recorded():
    runs = TableRuns("own:t", PaperTable(**TABLE), Records())
    assert [(one.verdict, one.size) for one in judge(runs)] == [("undecided", None)]
    recorded_of(runs, "quick", {"loud": [0.1, 0.1, 0.2], "quiet": [0.8, 0.9, 0.8]})
    assert [(one.verdict, one.size) for one in judge(runs)] == [("confirmed", "quick")]
    recorded_of(runs, "full", {"loud": [0.8, 0.9, 0.9], "quiet": [0.1, 0.1]})
    assert next(judge(runs)).size == "quick"  # a seed is missing
    recorded_of(runs, "full", {"quiet": [0.1, 0.1, 0.2]})
    (found,) = judge(runs)
    assert (found.verdict, found.size, found.smaller) == ("not reproduced", "full", {"quick": "confirmed"})


def test_seeds_are_added_until_a_claim_is_decided_or_the_cap_is_reached():
    runs = TableRuns("own:t", PaperTable(**TABLE), Records())
    loud, quiet = (("own:t", TableCell(row, "")) for row in ("loud", "quiet"))
    recorded_of(runs, "quick", {"loud": [0.1, 0.9, 0.5], "quiet": [0.3, 0.4, 0.5]})
    assert dict(_more({"own:t": runs}, "quick")) == {loud: (0, 1, 2, 3, 4), quiet: (0, 1, 2, 3, 4)}
    recorded_of(runs, "quick", {"loud": [0.1, 0.9, 0.5, 0.5, 0.5], "quiet": [0.3, 0.4, 0.5, 0.5, 0.5]})
    assert not dict(_more({"own:t": runs}, "quick"))  # the cap
    recorded_of(runs, "quick", {"loud": [0.1, 0.1, 0.1], "quiet": [0.8, 0.9, 0.8]})
    runs.records._tables["own-t"] = {key: one for key, one in runs.records.of("own:t").items() if key[1] < 3}
    assert not dict(_more({"own:t": runs}, "quick"))  # decided
    recorded_of(runs, "quick", {"loud": [0.1, 0.1, 0.1, 0.1], "quiet": [0.8, 0.9, 0.8, 0.8]})
    assert dict(_more({"own:t": runs}, "quick")) == {
        loud: (0, 1, 2, 3, 4),
        quiet: (0, 1, 2, 3, 4),
    }  # killed between two


def test_seeds_are_added_where_those_before_were_recorded_by_a_process_that_was_killed(monkeypatch: pytest.MonkeyPatch):
    records, asked = Records(), []
    runs = TableRuns("own:t", PaperTable(**TABLE), records)
    recorded_of(runs, "quick", {"loud": [0.1, 0.9, 0.5], "quiet": [0.3, 0.4, 0.5]})

    def run(runs: Any, wanted: Any, *rest: Any) -> SimpleNamespace:
        asked.append(set(wanted.values()))
        return SimpleNamespace(run_id="", failures={})  # nothing comes of it: it is not tried for ever

    monkeypatch.setattr(_reproduce, "_run", run)
    monkeypatch.setattr(_reproduce, "_log", lambda *told: None)
    reproduce({"own:t": runs.table}, records=records)
    assert asked == [{(0, 1, 2)}, {(0, 1, 2, 3, 4)}]


def ran(experiment: Experiment) -> Record:
    """The record of a run that is made here and now."""
    accuracies = [one["global/accuracy"] for one in Federation(experiment).run().history]
    about = tracking.environment()
    here = {name: about[name] for name in ("device", "cpu")} | {"threads": int(about["threads"])}
    made = record(digest(experiment), experiment.seed, **{"global/accuracy": accuracies})
    return made.model_copy(update=here | {"versions": {name: about[name] for name in VERSIONS}})


def test_records_are_checked_by_running_them_again():
    table, records = PaperTable(**TABLE), Records()
    runs = TableRuns("own:t", table, records)
    cells = list(runs.cells("quick").values())
    records.add("own:t", [ran(one_seed(one, seed)) for _, one in cells for seed in (0, 1)])
    tables = {"own:t": table}
    result = check(tables, 2, records, seed=1)
    assert result.ok
    assert all(rerun.same and rerun.alike for rerun in result.reruns)
    assert result.lines()[0] == "2 drawn of 4 recorded runs; left out: none"
    slow, wrong = list(records.of("own:t"))[:2]
    records.add(
        "own:t",
        [
            records.of("own:t")[slow].model_copy(update={"seconds": 1e6}),
            records.of("own:t")[wrong].model_copy(update={"figures": {"global/accuracy": [0.9, 0.9]}}),
            record("gone"),
        ],
    )
    result = check(tables, 9, records, minutes=60)
    assert [rerun.record.key for rerun in result.reruns if not rerun.ok] == [wrong]
    expected = "3 drawn of 3 recorded runs; left out: 1 take longer than 400 s, 1 are of a configuration that no table has today"
    assert result.lines()[0] == expected
    # another table shares the run and reads another figure of it: it is run once, and both are compared
    records.add("own:other", [records.of("own:t")[wrong].model_copy(update={"figures": {"attack/success": [0.5]}})])
    other = check(tables | {"own:other": table}, 9, records, minutes=60)
    assert (other.fit, other.lines()[0]) == (3, expected)
    shared = next(rerun for rerun in other.reruns if rerun.record.key == wrong)
    assert set(shared.record.figures) == {"global/accuracy", "attack/success"}
    close = ran(one_seed(cells[0][1], 1)).model_copy(update={"cpu": "another"})
    figures = {"global/accuracy": [one and one + 0.01 for one in close.figures["global/accuracy"]]}
    records.add("own:t", [close.model_copy(update={"figures": figures})])
    (rerun,) = (one for one in check(tables, 9, records, minutes=60).reruns if one.record.key == close.key)
    assert (rerun.same, rerun.alike, rerun.ok) == (
        False,
        False,
        True,
    )  # inside the tolerance of another kind of machine
    assert "on another kind of machine" in str(rerun)
    with pytest.raises(ConfigError, match="no record can be run again"):
        check({"own:nothing": table}, 1, records)
