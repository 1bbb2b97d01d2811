"""What `fl-lightning new` writes: packages whose own tests pass, and that work once they are installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fl_lightning import cli
from fl_lightning.cli._new import KINDS, new
from fl_lightning.errors import ConfigError

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path, path: str = "", executable: str = sys.executable) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FL_", "MLFLOW", "PYTHON"))}
    environment |= {"PYTHONPATH": path, "FL_LIGHTNING_RUNS": str(cwd / "runs")}
    done = subprocess.run(
        [executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_names_are_checked_and_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "aggregator", "shortest_mean"]) == 0
    assert (
        "class ShortestMean(Aggregator)" in (tmp_path / "shortest_mean" / "shortest_mean" / "__init__.py").read_text()
    )
    assert cli.main(["new", "aggregator", "shortest_mean"]) == 2
    for wrong in ("Krum", "my-rule", "class", "../up", "a" * 300, "a_", "a__b", "a\0", ""):
        with pytest.raises(ConfigError, match="a name has lower-case letters"):
            new("attack", wrong, tmp_path)
    for kind, taken in (("attack", "alie"), ("experiment", "digits"), ("attack", "os"), ("defense", "torch")):
        with pytest.raises(ConfigError, match="choose another name"):
            new(kind, taken, tmp_path)
    with pytest.raises(ConfigError, match="its class would be called View"):
        new("attack", "view", tmp_path)
    with pytest.raises(ConfigError, match="hide the other"):
        new("defense", "fl_lightning", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_of_a_skeleton_pass(kind: str, tmp_path: Path):
    new(kind, f"my_{kind}", tmp_path)
    folder = tmp_path / f"my_{kind}"
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, path=f"{ROOT}:{folder}")
    assert " passed" in said


@pytest.mark.slow
def test_an_installed_plugin_is_found_by_two_workers_of_a_sweep(tmp_path: Path):
    """Wheels of the project and of a plug-in in a fresh environment, without the checkout on the path."""
    new("aggregator", "shortest_mean", tmp_path)
    ours = tmp_path / "source"
    ours.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, ours)
    shutil.copytree(ROOT / "fl_lightning", ours / "fl_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    environment = tmp_path / "environment"
    python("-m", "venv", "--without-pip", str(environment), cwd=tmp_path)
    fresh = str(environment / "bin" / "python")
    site = Path(
        python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path, executable=fresh).strip()
    )
    for source in (ours, tmp_path / "shortest_mean"):
        program = "from setuptools import build_meta as b; print(b.build_wheel('.'))"
        wheel = python("-c", program, cwd=source).split()[-1]
        shutil.unpack_archive(source / wheel, site, "zip")  # what an installer does with a wheel of plain Python
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    work = tmp_path / "work"
    work.mkdir()
    where = python("-c", "import fl_lightning; print(fl_lightning.__file__)", cwd=work, executable=fresh)
    assert where.startswith(str(site))
    listing = python("-m", "fl_lightning.cli", "list", "--plugins", cwd=work, executable=fresh)
    assert "shortest-mean 0.1.0" in listing
    small = ["rounds=1", "data.train_samples=100", "data.test_samples=50", "model=linear"]
    small += ["partition={name: iid, clients: 5}", "participation={name: full, malicious: 1}", "attack=sign_flip"]
    sweep = [
        "sweep.trials=2",
        "sweep.jobs=2",
        "sweep.confirm_seeds=[9]",
        "sweep.metric=attack/success",
        "sweep.pruner=none",
    ]
    said = python(
        *("-m", "fl_lightning.cli", "sweep", "digits", "aggregator=shortest_mean", *small, *sweep),
        cwd=work,
        executable=fresh,
    )
    assert "unseen seeds" in said
    rule = "aggregator={name: shortest_mean, n_byzantine: 2}"
    assert "n_byzantine: 2" in python("-m", "fl_lightning.cli", "show", "digits", rule, cwd=work, executable=fresh)
