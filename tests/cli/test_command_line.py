"""What a command line may look like, and that whatever is wrong with one is told in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fl_lightning.cli import main
from fl_lightning.cli._browser import ui
from fl_lightning.errors import ConfigError, masked
from fl_lightning.inputs import strict_json


def answer(arguments: list[str]) -> int:
    """The exit code, also where argparse exits by itself."""
    try:
        return main(arguments)
    except SystemExit as exit:
        return int(exit.code or 0)


BAD = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["rnu"], "invalid choice: 'rnu'"),
    "nothing to show": (["show"], "required: EXPERIMENT;"),
    "unknown option": (["show", "digits", "--nonsense" + "x" * 5000], "unrecognized arguments: --nonsensex"),
    "port": (["ui", "--port", "70000"], "expected a number from 1 to 65535, got '70000'"),
    "no jobs": (["reproduce", "cmp", "--jobs", "0"], "expected a number from 1 to 1024, got '0'"),
    "file to write": (["reproduce", "cmp", "--write", "/no/such/file"], "cannot write to /no/such/file"),
    "gpu": (["run", "digits", "trainer.accelerator=mps"], "trainer.accelerator: this machine has no mps"),
    "large": (["run", "digits", "model.hidden=[99999999999]"], "model: D=7.5e+12 parameters and C=10 clients"),
    "overflow": (["run", "digits", "model.hidden=[4611686018427387904, 4611686018427387904]"], "model: D=9.22e+18"),
    "long name": (["run", "x" * 300], "(302 characters), and no such file"),
    "NUL": (["run", "a\0b"], "no such file"),
    "not of this locale": (
        ["run", "m\udcc3\udcbcll.yaml"],
        "this locale cannot read 'm\\udcc3\\udcbcll.yaml': set PYTHONUTF8=1",
    ),
    "no file": (["matrix", "/dev/null"], "no matrix '/dev/null'"),
    "long slot": (["list", "x" * 3000], "(3,002 characters)"),
    "long model": (["models", "show", "x" * 3000], "no registered model"),
    "no model": (["models", "show", ""], "no registered model ''"),
    "run outside": (["run", "--resume", "../../../etc"], "no run '../../../etc'"),
    "long run": (["run", "--resume", "x" * 5000], "no run"),
    "open quotation": (
        ["sweep", "digits", "--enqueue", "attack.std='"],
        "--enqueue: cannot be taken apart (No closing",
    ),
    "empty trial": (["sweep", "digits", "--enqueue", ""], "--enqueue: a trial needs path=value"),
    "no host": (["ui", "--host", "a\0b"], "cannot listen on 'a\\x00b', port 5000 (no name of a machine)"),
    "names to list": (["data", "list", "mnist"], "list takes no names"),
    "path in a slot": (["list", "attack", "../attack/alie"], "unknown attack '../attack/alie'"),
    "name of a file": (["import", "x" * 5000], "error"),
    "NUL in a file": (["unpack", "a\0.zip"], "no file"),
    "confirmed on the searched seed": (
        ["sweep", "digits", "attack=gaussian", "sweep.confirm_seeds=[0]", "--dry-run"],
        "sweep.confirm_seeds: the search must not have seen these seeds, and it runs with seed 0; got [0]",
    ),
    "a search of how often": (
        ["show", "digits", "sweep.space={sweep.trials: [1, 2]}"],
        "sweep.space.sweep.trials: a search varies what changes the result of a run; seed,",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, store_folder: Path, capsys):
    arguments, message = BAD[case]
    if case == "gpu" and sys.platform == "darwin":
        pytest.skip("a Mac may have mps")
    assert answer(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert len(error) < 2200


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "digits", "--fast", "attack=alie", "attack.z=2"],
        ["show", "--fast", "digits", "attack.z=2", "attack=alie"],
        ["show", "digits", "attack=alie", "--fast", "attack.z=2", "--debug"],
    ],
)
def test_options_stand_anywhere(arguments: list[str], capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "z: 2.0" in shown
    assert "fast: true" in shown


@pytest.mark.parametrize("debug", ["option", "environment", "no"])
def test_debug_tells_where(debug: str, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FL_LIGHTNING_DEBUG", "1" if debug == "environment" else "0")
    assert main(["show", "digits", "rounds=0"] + ["--debug"] * (debug == "option")) == 2
    error = capsys.readouterr().err
    assert ("Traceback" in error) == (debug != "no")
    assert error.splitlines()[-1].startswith("error: rounds: ")


def test_what_nobody_expected_is_one_line_too(capsys, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line, from http://alice:s3cr3t@host/x")

    monkeypatch.setattr("fl_lightning.config.load", broken)
    assert main(["show", "digits"]) == 1
    error = capsys.readouterr().err
    assert error == ("error: RuntimeError: first line second line, from http://alice:***@host/x; --debug shows where\n")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("http://alice:s3cr3t@host:5000/x", "http://alice:***@host:5000/x"),
        ("postgresql+psycopg2://fl:a@b/c:d@db/studies?x=1", "postgresql+psycopg2://fl:***@db/studies?x=1"),
        ("postgresql://db/studies?user=fl&password=pw&x=1", "postgresql://db/studies?user=fl&password=***&x=1"),
        ("sqlite:////tmp/a/mlflow.db", "sqlite:////tmp/a/mlflow.db"),
        ("http://host:5000/x and more", "http://host:5000/x and more"),
    ],
)
def test_passwords_are_masked(text: str, safe: str):
    assert masked(text) == safe
    assert str(ConfigError(f"no answer from {text}")) == f"no answer from {safe}"


def test_json_has_no_nan():
    text = strict_json({"a": [float("nan"), float("-inf"), 0.5], "b": {"c": (float("inf"), None, True)}})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, None, 0.5], "b": {"c": [None, None, True]}}


def test_the_ui_takes_no_address_of_a_database_as_an_argument(
    monkeypatch: pytest.MonkeyPatch, capsys, unused_port: int
):
    secret = "postgresql://fl:s3cr3t@db/mlflow"
    started: list[tuple[list[str], dict[str, str]]] = []

    class Server:
        def wait(self) -> int:
            return 0

    @contextmanager
    def start(arguments: list[str], env: dict[str, str], **_: object) -> Iterator[Server]:
        started.append((arguments, env))
        yield Server()

    monkeypatch.setattr("fl_lightning.cli._browser.tracking.opened_uri", lambda: secret)
    monkeypatch.setattr("fl_lightning.cli._browser.studies_url", lambda: secret)
    monkeypatch.setattr("fl_lightning.cli._browser.find_spec", lambda name: True)
    monkeypatch.setattr("fl_lightning.cli._browser.tied", start)
    assert ui("0.0.0.0", unused_port) == 0
    assert len(started) == 2
    for arguments, env in started:
        assert not any("s3cr3t" in word for word in arguments)
        assert secret in env.values()
    told = capsys.readouterr()
    assert "s3cr3t" not in told.out + told.err
    assert "warning: whoever reaches 0.0.0.0" in told.err


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def test_output_that_the_terminal_cannot_show_is_no_error():
    program = (
        "import sys; from fl_lightning.cli import main; sys.exit(main(['show', 'digits', 'paper=\\u00fc\\u4e2d']))"
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    shown = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert "paper: \\xfc\\u4e2d" in shown.stdout
