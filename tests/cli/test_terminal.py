"""What stands in a terminal: at any width, without colours, in ASCII; and the commands that look without running."""

import codecs
import io
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rich.console import Console

from fl_lightning.cli import main
from fl_lightning.cli._console import duration, shown
from fl_lightning.cli._main import plain
from fl_lightning.cli._progress import Bar, SearchProgress
from fl_lightning.config import Experiment, Stop, load
from fl_lightning.federation import Federation
from fl_lightning.paths import runs_folder
from fl_lightning.search._first_trials import given
from fl_lightning.search._space import search_space

NOTE = "attack success 0.998  accuracy 0.894"


def drawn(width: int, encoding: str, **options: object) -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=stream, force_terminal=True, width=width, **options)  # type: ignore[arg-type]
    bar = Bar(console, "model_replacement vs norm_bound + trimmed_mean, seed 0", 30, 0)
    bar.show(12, 75, NOTE)
    bar.refresh()
    bar.stop()
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bar_count_time_and_figures_are_visible(width: int, encoding: str):
    lines = drawn(width, encoding, no_color=True)
    bar = next(line for line in lines if "12/30" in line)
    assert "1:15 min left" in bar
    assert re.search("[━-]{6}", bar)
    assert bar.startswith("model_replacement vs")
    assert any(NOTE in line for line in lines)
    assert max(map(len, lines)) <= width


def test_what_ascii_cannot_show_is_said_in_other_signs():
    codecs.register_error("plain", plain)
    assert "0.5 ± 0.1 ≥ 0 … é漢".encode("ascii", errors="plain") == b"0.5 +/- 0.1 >= 0 ... \\xe9\\u6f22"


def test_times_and_sizes_in_units_of_people():
    assert [duration(s) for s in (0.4, 59, 61, 3600)] == ["0 s", "59 s", "1:01 min", "1:00 h"]
    assert [shown(n) for n in (0, 999, 1500, 2_500_000_000)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]


def study(done: int, running: int = 0) -> SimpleNamespace:
    def trial(finished: bool) -> SimpleNamespace:
        return SimpleNamespace(
            state=SimpleNamespace(is_finished=lambda: finished, name="COMPLETE" if finished else "RUNNING"),
            values=[0.5] if finished else None,
            datetime_start=datetime.now(),
            duration=timedelta(seconds=1),
            constraints={},
        )

    trials = [trial(True) for _ in range(done)] + [trial(False) for _ in range(running)]
    return SimpleNamespace(get_trials=lambda deepcopy: trials, directions=[SimpleNamespace(name="MAXIMIZE")])


def test_one_clock_over_trials_and_confirmations(monkeypatch: pytest.MonkeyPatch, capsys):
    now = [0.0]
    monkeypatch.setattr("fl_lightning.cli._progress.time.monotonic", lambda: now[0])
    progress = SearchProgress("attack/success", (1001, 1002))
    progress.console = Console(file=(out := io.StringIO()), width=80)
    progress(study(0), 2)
    now[0] = 100.0  # workers take their time to start: no part of a trial
    progress(study(0, running=1), 2)
    now[0] = 110.0
    progress(study(1, running=1), 2)
    assert "trial 1/2  best attack/success 0.500  50 s left" in out.getvalue()
    now[0] = 120.0
    progress(study(2), 2)
    federation = SimpleNamespace(experiment=SimpleNamespace(planned_rounds=1), state=SimpleNamespace(stopped=None))
    for seed in (1001, 1002, 1001, 1002):
        (watcher,) = progress.watch(SimpleNamespace(seed=seed))
        now[0] += 10
        watcher.round(federation, SimpleNamespace(round=0, metrics={"attack/success": 0.9}))
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("confirming")] == [
        "confirming: the winner, on 2 seeds that the search never saw",
        "confirming: what is configured, on 2 seeds that the search never saw",
    ]
    assert "30 s left" in next(line for line in lines if "the winner, unseen seed 1001" in line)
    assert "left" not in lines[-1]


def test_the_best_figure_shown_is_one_that_a_search_can_choose():
    shown = SearchProgress("attack/success")
    shown.console = Console(file=io.StringIO(), width=80)
    search = optuna.create_study(direction="maximize")
    ends = {0.5: TrialState.COMPLETE, 0.9: TrialState.PRUNED}
    for value, state in ends.items():
        search.add_trial(optuna.create_trial(state=state, value=value))
    shown(search, 2)
    assert shown.note == "best attack/success 0.500"


def test_everything_about_one_attack(capsys):
    assert main(["list", "attack", "alie"]) == 0
    out = capsys.readouterr().out
    for words in ("0.1 to 5 (log)", "Baruch et al.", "needs none knowledge", "measured on digits", "as shipped"):
        assert words in out
    assert main(["list", "attack", "ali"]) == 2
    assert "did you mean 'alie'" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "name"), [("matrix", "digits"), ("paper", "cmp:table-4"), ("experiment", "mnist")])
def test_kinds_that_are_no_slots_are_listed(kind: str, name: str, capsys):
    assert main(["list", kind]) == 0
    assert any(line.startswith(name) for line in capsys.readouterr().out.splitlines())


def test_the_schema_knows_fields_ranges_and_names(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    attacks = schema["$defs"]["attack"]["anyOf"]
    assert "dba" in attacks[0]["anyOf"][0]["enum"]  # a configuration, no class
    alie = next(one for one in attacks if one.get("properties", {}).get("name", {}).get("const") == "alie")
    assert alie["additionalProperties"] is False
    assert alie["properties"]["sign"]["enum"] == ["minus", "plus"]
    assert alie["properties"]["objective"]["$ref"] == "#/$defs/objective"
    references = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema)))
    assert references <= set(schema["$defs"])


def test_a_run_ends_with_what_it_was_to_reach(tiny: Callable[..., Experiment]):
    experiment = tiny(rounds=5)
    assert experiment.override({"stop": None}).digest() == experiment.digest()
    early = experiment.override({"stop": {"metric": "global/accuracy", "above": -1.0, "rounds": 2}})
    state = Federation(early).run()
    assert state.round == 2
    assert state.stopped is None
    assert str(state.reached).startswith("global/accuracy")
    whole = Federation(experiment).run().history
    assert [figures["global/accuracy"] for figures in state.history] == [
        figures["global/accuracy"] for figures in whole[:2]
    ]


def test_limits_of_stopping():
    assert Stop(metric="x", below=1.0).reason([{"x": 1.0}]) is None
    assert Stop(metric="x", below=1.0).reason([{"x": 0.5}, {}]) is None  # not evaluated in the last round
    assert Stop(metric="x", above=0.0, rounds=2).reason([{"x": 1.0}, {"x": -1.0}, {"x": 1.0}]) is None


STOPS = {
    "no limit": ({"metric": "attack/success"}, "needs one of above and below"),
    "both": ({"metric": "attack/success", "above": 1, "below": 0}, "needs one of above and below"),
}


@pytest.mark.parametrize("case", STOPS)
def test_bad_limits_are_refused(case: str):
    stop, message = STOPS[case]
    with pytest.raises(ValueError, match=message):
        load("digits").override({"stop": stop})


def test_a_misspelt_figure_is_refused_before_anything_is_trained(store_folder, capsys):
    assert main(["run", "digits", "stop={metric: global/acuracy, above: 0.5}"]) == 2
    assert "no run reports 'global/acuracy'; did you mean 'global/accuracy'" in capsys.readouterr().err


def test_trials_of_ones_own():
    experiment = load("digits", ["attack=alie"])
    space = search_space(experiment)
    assert given(experiment, space, {"attack.z": 1.5}) == {"attack.z": 1.5}
    for changes, message in (({"attack.q": 1}, "did you mean 'attack.z'"), ({"attack.z": 99.0}, "must lie in")):
        with pytest.raises(ValueError, match=message):
            given(experiment, space, changes)
    several = load("digits", ["sweep.space={attack: [alie, ipm]}"])
    assert given(several, search_space(several), {"attack": "alie", "attack.z": 1.5}) == {
        "attack": "alie",
        "alie.z": 1.5,
    }


@pytest.mark.slow
def test_dry_runs_runs_beside_each_other_and_what_can_go(tmp_path: Path, store_folder, tiny, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(attack="gaussian", rounds=2).to_dict()))
    assert main(["run", str(path), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["parameters"] > 0
    ids = []
    for std in (1, 2):
        assert main(["run", str(path), f"attack.std={std}", "--json", "-q"]) == 0
        ids.append(json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"])
    assert main(["compare", ids[0][:10], ids[1], "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["differences"]["attack.std"] == ["1.0", "2.0"]
    assert set(told["differences"]) == {"attack.std"}
    left = runs_folder() / "state" / ("0" * 32)
    left.mkdir(parents=True)
    (left / "checkpoint.pt").write_bytes(b"x" * 1000)
    assert main(["gc", "checkpoints"]) == 0
    assert left.exists(), "nothing goes without --yes"
    assert main(["gc", "checkpoints", "--yes"]) == 0
    assert "freed 1.0 kB" in capsys.readouterr().out
    assert not left.exists()
