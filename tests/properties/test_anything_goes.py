"""Whatever is asked: refused in one line with exit code 2, or done with finite, explained figures. Never anything else.

The everyday suite draws a few hundred cases of each kind, always the same; `slow` draws thousands, others every time.
"""

import json
import math
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fl_lightning._matrix import load_matrix
from fl_lightning.aggregators import Aggregator
from fl_lightning.cli import main
from fl_lightning.config import Experiment, load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.inputs import read_yaml_text
from fl_lightning.registry import flatten, registry
from fl_lightning.testing.aggregators import called

CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]


def examples(everyday: int, slow: int, *drawn: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Runs a property with so many cases in the everyday suite, and with so many more, drawn anew, in the slow one."""

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        few = settings(
            max_examples=everyday, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS
        )
        many = settings(max_examples=slow, deadline=None, suppress_health_check=CHECKS)

        @pytest.mark.parametrize(
            "many_cases", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
        )
        def test(many_cases: bool) -> None:
            (many if many_cases else few)(given(*drawn)(check))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def commanded(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
    return code, out.getvalue(), err.getvalue()


def refused_or_done(arguments: list[str]) -> str | None:
    """What a command printed; None where it refused in one line."""
    code, out, err = commanded(arguments)
    if code == 0:
        return out
    assert code == 2, f"{arguments} ends with {code}: {err}"
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert len(err) < 4000
    return None


# ---- What people, and their enemies, write ----

SLOTS = (
    "attack",
    "aggregator",
    "partition",
    "participation",
    "model",
    "engine",
    "client.optimizer",
    "attack.objective",
)
NAMES = {path: registry(path.rpartition(".")[2]).names() for path in SLOTS}
PATHS = sorted(flatten(load("digits").to_dict()))
JUNK = [
    *(
        "null",
        "true",
        "no",
        "on",
        "~",
        "-1",
        "0",
        "0.5",
        "1e-3",
        "1e30",
        ".inf",
        "-.inf",
        ".nan",
        "1e999",
        "1:01",
        "010",
    ),
    *(
        "[]",
        "{}",
        "[1, 2]",
        "{name: krum}",
        "{name: }",
        "[[]]",
        "{a: {b: {c: 1}}}",
        "{1: 2}",
        "{a: 1, a: 2}",
        "''",
        "' '",
    ),
    *(
        "../x",
        "/etc/passwd",
        "krum",
        "os:system",
        ":",
        "a:",
        "json:JSONDecoder",
        "&a [*a]",
        "*a",
        "!!set {x}",
        "%x",
        "@",
        "`",
    ),
    *(
        "'\\0'",
        '"\\ud800"',
        "9" * 30,
        "9" * 5000,
        "x" * 5000,
        "{" * 200,
        "[" * 60 + "]" * 60,
        "- 1",
        "a: b: c",
        "{x",
        "'x",
    ),
]
words = st.one_of(
    st.sampled_from(JUNK),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=12),
    st.sampled_from([name for names in NAMES.values() for name in names]),
)
paths = st.one_of(
    st.sampled_from(PATHS),
    st.sampled_from([*SLOTS, "defenses", "defenses.x", "client.callbacks", "sweep.space", "sweep", "client", ""]),
    st.sampled_from(PATHS).map(lambda path: path[:-1]),
    st.text(max_size=8),
)
overrides = st.builds("{}={}".format, paths, words)


@examples(120, 4000, st.lists(overrides, min_size=1, max_size=3), st.booleans())
def test_any_changes_are_refused_or_shown_as_what_loads_again(changes: list[str], fast: bool) -> None:
    assume(not any(change.startswith("-") for change in changes))
    shown = refused_or_done(["show", "digits", *["--fast"] * fast, *changes])
    if shown is not None:
        again = load(read_yaml_text(shown))
        assert again.to_dict() == read_yaml_text(shown)
        json.dumps(again.to_dict(), allow_nan=False)


keys = st.sampled_from(["data", "rounds", "attack", "seeds", "base", "attacks", "servers", "metric", "jobs", "tune"])
documents = st.one_of(
    st.text(max_size=60),
    st.lists(st.builds("{}: {}".format, st.one_of(keys, words), words), max_size=6).map("\n".join),
)


@examples(100, 4000, documents, st.sampled_from(["experiment", "matrix", "paper"]))
def test_any_file_is_refused_or_read(text: str, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        if kind == "experiment":
            refused_or_done(["show", str(path)])
        elif kind == "matrix":
            with_refusal(lambda: load_matrix(str(path)).experiments())
        else:
            code, _, err = commanded(["reproduce", str(path), "--size", "none"])
            assert code == 2, err


def with_refusal(task: Callable[[], Any]) -> Any:
    """What a task gives; None where it refuses in one line."""
    try:
        return task()
    except ConfigError as error:
        told = str(error)
    assert "\n" not in told
    assert 0 < len(told) < 4000
    return None


arguments = st.one_of(
    st.sampled_from(
        ["--fast", "--json", "--debug", "--resume", "--port", "--host", "--size", "--jobs", "--write", "--trust", "--"]
    ),
    st.sampled_from(
        ["-1", "0", "70000", "x" * 3000, "", " ", "..", "/", "a/b", "a@b", "models:/", "\0", "\ud800", "NAME@strongest"]
    ),
    st.sampled_from(
        ["digits", "cmp", "cmp:nothing", "all-of-them", "show", "get", "compare", "export", "minst", "attack"]
    ),
    overrides,
)


VERBS = ("show", "compare", "export", "analyze")


@pytest.fixture(autouse=True)
def _empty_store(store_folder: Path) -> None:
    """Commands that look into the store find an empty one."""


@examples(
    100,
    3000,
    st.sampled_from(
        [
            "show",
            "list",
            "models show",
            "models compare",
            "models export",
            "models analyze",
            "run --resume",
            "nonsense",
            "data get",
        ]
    ),
    st.lists(arguments, max_size=4),
)
def test_any_command_line_is_refused_or_answered(command: str, rest: list[str]) -> None:
    line = [*command.split(), *rest]
    assume(not {"--help", "-h"} & set(line))
    assume(command != "data get" or not set(rest) & set(registry("data").names()))
    code, _, err = commanded(line)
    assert code in (0, 2), f"{line} ends with {code}: {err}"
    if code == 2 and "--debug" not in line:
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err


# ---- What is accepted runs ----

TINY = {
    "data": {"name": "digits", "train_samples": 120, "test_samples": 40, "validation": 20},
    "rounds": 2,
    "partition": {"name": "iid", "clients": 5},
    "model": {"name": "mlp", "hidden": [4]},
    "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.2}},
    "participation": {"name": "full", "malicious": 1},
}
NUMBERS = ["0", "1", "2", "3", "5", "0.5", "1e-3", "-1", "1e30", "1e-30", "null", "true", "100"]
ASIDE = ("sweep", "tracking", "trainer", "paper")
SETTABLE = [path for path in sorted(flatten(load(TINY).to_dict())) if path.split(".")[0] not in ASIDE]
changes_of_runs = st.lists(
    st.one_of(
        st.builds("{}={}".format, st.sampled_from(SETTABLE), st.sampled_from(NUMBERS)),
        st.sampled_from(
            [
                f"{slot}={name}"
                for slot in ("attack", "aggregator", "participation", "partition")
                for name in NAMES[slot]
            ]
        ),
        st.sampled_from([f"defenses={{it: {name}}}" for name in registry("defense").names()]),
    ),
    min_size=1,
    max_size=4,
)


def affordable(experiment: Experiment) -> bool:
    """Whether two rounds of it are over in a moment."""
    client = experiment.client
    return (
        experiment.rounds <= 5
        and client.epochs <= 5
        and (client.steps or 0) <= 20
        and experiment.partition.clients <= 10
    )


@examples(20, 1500, changes_of_runs)
def test_what_loads_runs_with_finite_figures_or_says_why_not(changes: list[str]) -> None:
    experiment = with_refusal(lambda: load(TINY, changes))
    assume(experiment is not None and affordable(experiment))
    federation = with_refusal(lambda: Federation(experiment))
    if federation is None:
        return
    state = with_refusal(federation.run)
    if state is None:
        return
    assert bool(state.global_D.isfinite().all())
    for figures in state.history:
        broken = {name: value for name, value in figures.items() if not math.isfinite(value)}
        assert state.stopped or not broken, broken


# ---- Update matrices ----


@cache
def rules() -> dict[str, Aggregator]:
    """Every shipped rule that its name alone builds."""
    built = {name: with_refusal(lambda name=name: registry("aggregator").build(name)) for name in NAMES["aggregator"]}
    return {name: rule for name, rule in built.items() if rule is not None}


rows = st.sampled_from(["honest", "nan", "inf", "-inf", "zero", "equal", "huge", "minus", "last nan", "tiny"])


def matrix(kinds: list[str], columns: int, seed: int) -> torch.Tensor:
    """`[C, D]` updates, one kind a row."""
    random = torch.Generator().manual_seed(seed)
    updates_CD = torch.randn(len(kinds), columns, generator=random)
    values = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf, "zero": 0.0, "equal": 0.5}
    for row, kind in enumerate(kinds):
        if kind in values:
            updates_CD[row] = values[kind]
        elif kind == "last nan":
            updates_CD[row, -1] = torch.nan
        else:
            updates_CD[row] *= {"honest": 1.0, "huge": 1e12, "minus": -1.0, "tiny": 1e-30}[kind]
    return updates_CD


@examples(
    200,
    6000,
    st.sampled_from(NAMES["aggregator"]),
    st.lists(rows, min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_any_updates_are_refused_or_give_a_finite_aggregate(
    name: str, kinds: list[str], columns: int, seed: int
) -> None:
    assume(name in rules())
    updates_CD = matrix(kinds, columns, seed)
    before_CD = updates_CD.clone()
    try:
        result = called(rules()[name], updates_CD)
    except ValueError:  # too few rows, none of them finite
        return
    assert torch.equal(updates_CD.nan_to_num(), before_CD.nan_to_num())
    assert bool(result.update.isfinite().all()), f"{name} gives {result.update} for {kinds}"
    finite_C = before_CD.isfinite().all(1)
    assert not bool((result.kept.bool() & ~finite_C).any()), "a row with NaN or Inf is not kept"
