"""What a command imports, counted rather than timed: what answers at once must not load what takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "lightning", "pytorch_lightning", "torchmetrics", "torchvision", "scipy", "sklearn", "matplotlib", "pandas",
    "mlflow", "optuna", "pydantic", "rich",
)  # fmt: skip
PROGRAM = (
    "import json, sys\nfrom fl_lightning.cli import main\n"
    "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
)
COMMANDS = {
    "help": (["--help"], set()),
    "version": (["--version"], set()),
    "list": (["list"], {"rich"}),
    "list one": (["list", "attack", "alie"], {"rich"}),
    "show": (["show", "digits"], {"torch", "pydantic"}),
    "bad input": (["run", "digits", "roundz=3"], {"torch", "pydantic"}),
    "run": (["run", "digits", "rounds=1"], set(HEAVY) - {"optuna", "pytorch_lightning"}),
    "bad input of a sweep": (["sweep", "digits", "attack=ali"], {"torch", "pydantic"}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "bad input" else pytest.mark.slow) for case in COMMANDS]
)
def test_a_command_imports_what_it_needs(case: str, tmp_path: Path):
    arguments, needed = COMMANDS[case]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "Traceback" not in done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) <= needed


@pytest.mark.slow
def test_models_are_logged_without_a_second_lightning():
    program = (
        "import sys\nfrom fl_lightning.tracking._models import mlflow_pytorch\nmodule = mlflow_pytorch()\n"
        "assert 'pytorch_lightning' not in sys.modules\nassert module.MlflowModelCheckpointCallback\n"
        "assert 'pytorch_lightning' in sys.modules or 'lightning' in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    )
