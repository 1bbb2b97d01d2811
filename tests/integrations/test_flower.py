"""Our server and attackers in a simulation of Flower's, whose clients train by a loop of their own: as in our own simulation."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parent / "flower_app.py"
BASE = {
    "data": {"name": "digits", "train_samples": 200, "test_samples": 100},
    "rounds": 3,
    "partition": {"name": "dirichlet", "clients": 5, "alpha": 1.0},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"steps": 1, "batch_size": 1000, "optimizer": {"name": "sgd", "lr": 0.5}},
    "trainer": {"precision": 64},
    "engine": "sequential",
}
CASES = {
    "krum": {
        "participation": {"name": "full", "malicious": 1},
        "attack": "sign_flip",
        "aggregator": {"name": "krum", "n_byzantine": 1},
        "defenses": {"clip": {"name": "norm_bound", "max_norm": 0.5}},
    },
    "colluders": {
        "participation": {"name": "full", "malicious": 2},
        "attack": {"name": "min_max", "knowledge": "full"},
        "aggregator": "median",
    },
}


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("flwr"), reason="needs Flower: pip install 'fl-lightning[flower]'")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_flower_ends_at_the_model_of_our_own_simulation(case, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(APP.parents[2]), "FL_LIGHTNING_RUNS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(APP), json.dumps(BASE | case)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FIGURES ")), None)
    assert line, done.stderr[-2000:]
    figures = json.loads(line.removeprefix("FIGURES "))
    assert figures["moved"] > 1e-3
    assert figures["apart"] < 1e-12
    assert figures["theirs"] == figures["ours"]
    assert figures["selected"] == pytest.approx(figures["selected_ours"])
