"""The command line: what it prints, what it refuses, and how it exits."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fl_lightning.cli import main
from fl_lightning.config import dump, load


@pytest.fixture
def tiny_yaml(tiny, tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny(attack="gaussian", rounds=2)))
    return str(path)


def test_help_answers_without_torch():
    program = "import sys, fl_lightning.cli as c\ntry: c.main(['--help'])\nfinally: print('torch' in sys.modules)"
    begin = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert time.perf_counter() - begin < 5  # half a second on a quiet machine, benchmarks/ measure it
    assert answer.stdout.splitlines()[-1] == "False"
    for command in ("run", "sweep", "list", "show", "data", "models", "ui"):
        assert f"\n    {command} " in answer.stdout


def test_run_prints_a_table_and_one_json_object(tiny_yaml, store_folder, capsys):
    assert main(["run", tiny_yaml, "rounds=1", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plain = json.loads(lines[-1])
    assert plain["rounds"] == 1
    assert plain["experiment"] == "tiny"
    assert "attack/success" in plain["metrics"]
    assert any("global/accuracy" in line for line in lines[:-1])
    assert f"run {plain['run_id']}" in lines
    address = f"http://127.0.0.1:5000/#/experiments/1/runs/{plain['run_id']}?workflowType=machine_learning"
    assert f"look closer: fl-lightning ui, then {address}" in lines
    assert main(["run", "--resume", plain["run_id"], "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["metrics"] == plain["metrics"]


def test_show_prints_a_configuration_that_loads(tiny_yaml, capsys):
    assert main(["show", tiny_yaml, "attack.std=3"]) == 0
    shown = load(yaml.safe_load(capsys.readouterr().out))
    assert shown.attack.std == 3  # type: ignore[union-attr]


def test_list_tells_every_slot_and_one(capsys):
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    for word in ("mnist_backdoor", "krum", "model_replacement", "pdrr", "fl_wbc", "vectorized"):
        assert word in everything
    assert main(["list", "aggregator"]) == 0
    assert "krum" in capsys.readouterr().out


def test_models_says_how_to_make_one(store_folder, capsys):
    assert main(["models", "list"]) == 0
    assert "no registered models yet" in capsys.readouterr().out


BAD = {
    "misspelt key": (
        ["run", "digits", "participation.malicius=2"],
        "participation.malicius: unknown key; did you mean 'malicious'",
    ),
    "unknown component": (
        ["run", "digits", "aggregator=crum"],
        "aggregator: unknown aggregator 'crum'; did you mean 'krum'",
    ),
    "unknown experiment": (["run", "minst"], "no experiment 'minst', and no such file; did you mean 'mnist'"),
    "f too large": (
        [
            "run",
            "digits",
            "partition.clients=5",
            "aggregator={name: krum, n_byzantine: 2}",
            "participation.malicious=1",
        ],
        "Krum needs C > 2f + 2, got C=5, f=2",
    ),
    "no override": (["run", "digits", "rounds"], "an override is written path=value, got 'rounds'"),
    "not a number": (["run", "digits", "rounds=many"], "rounds"),
    "more malicious than clients": (["run", "digits", "participation.malicious=500"], "participation"),
    "nothing to run": (["run"], "give an EXPERIMENT or --resume RUN_ID"),
    "resume with changes": (["run", "--resume", "x", "--fast"], "--resume takes everything from the run"),
    "unknown run": (["run", "--resume", "nonsense"], "no run 'nonsense'"),
    "unknown slot": (["list", "agregator"], "unknown slot 'agregator'; did you mean 'aggregator'"),
    "unknown data": (["data", "get", "minst"], "did you mean 'mnist'"),
    "no data named": (["data", "get"], "name the data sets to get"),
    "wrong constraint": (["sweep", "digits", "sweep.constraints={global/accuracy: about 0.8}"], "expected '>= number'"),
    "pdrr without its rule": (
        ["run", "digits", "defenses={check: pdrr}", "aggregator=mean"],
        "defenses.check: pdrr needs",
    ),
    "no validation data": (["run", "digits", "defenses={check: err}"], "defenses.check"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(case, store_folder, capsys):
    arguments, message = BAD[case]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (store_folder / "state").exists()


def test_a_corrupted_archive_is_refused(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "data"
    (folder / "mnist").mkdir(parents=True)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (folder / "mnist" / name).write_bytes(b"broken")
    monkeypatch.setenv("FL_LIGHTNING_DATA", str(folder))
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(tmp_path / "runs"))
    assert main(["run", "mnist", "rounds=1"]) == 2
    assert "checksum" in capsys.readouterr().err.lower()


def test_a_runs_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(in_the_way / "mlruns"))
    assert main(["run", "digits", "rounds=1"]) == 2
    assert "set FL_LIGHTNING_RUNS to a folder that can be written" in capsys.readouterr().err


def test_a_busy_port_is_said_before_the_ui_starts(store_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    assert f"cannot listen on '127.0.0.1', port {port}" in capsys.readouterr().err
