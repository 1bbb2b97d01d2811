"""What a stranger's registered model can do: nothing is executed, nothing outside is read, one line says what is wrong."""

import pickle
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fl_lightning import runs, tracking
from fl_lightning.cli import main
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.inputs import read_yaml_text, write_yaml

NAME = "digits-mlp-gaussian-vs-mean"


class Spy:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.trace), "w")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A runs folder with one registered model."""
    folder = tmp_path_factory.mktemp("hostile") / "mlruns"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    slots: dict[str, Any] = {
        "data": {"name": "digits", "train_samples": 60, "test_samples": 30},
        "rounds": 1,
        "partition": {"name": "iid", "clients": 3},
        "model": {"name": "mlp", "hidden": [4]},
        "participation": {"name": "full", "malicious": 1},
        "attack": {"name": "gaussian", "std": 1.0},
        "tracking": {"register": "always"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_LIGHTNING_RUNS", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert runs.run(load(slots), "tiny").registered_model
    return folder


@pytest.fixture
def weights(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The file with the model's weights, whole again after the test."""
    monkeypatch.setenv("FL_LIGHTNING_RUNS", str(folder))
    monkeypatch.chdir(tmp_path)
    (path,) = folder.glob("artifacts/**/weights/final.safetensors")
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


def about(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, **changes: str | None) -> None:
    """Another header over the same weights."""
    header = {key: value for key, value in (about(path) | changes).items() if value is not None}
    save_file(load_file(path), path, metadata=header)


def configured(path: Path, **slots: Any) -> None:
    """Other slots in the configuration of the header."""
    rewrite(path, config=write_yaml(read_yaml_text(about(path)["config"]) | slots))


LAUGHS = "a: &a [x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "garbage": lambda path: path.write_bytes(b"\x93" * 5000),
    "header of 2^62 bytes": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Spy(path.parent / "trace"))),
    "no metadata": lambda path: save_file(load_file(path), path),
    "no configuration": lambda path: rewrite(path, config=None),
    "no shape": lambda path: rewrite(path, shape=None),
    "shape of words": lambda path: rewrite(path, shape="a,b"),
    "shape of 1e12": lambda path: rewrite(path, shape="1,1000000,1000000"),
    "negative shape": lambda path: rewrite(path, shape="1,-8,8"),
    "many classes": lambda path: rewrite(path, classes="999999999999"),
    "a file name": lambda path: rewrite(path, config="/etc/passwd"),
    "the name of an experiment": lambda path: rewrite(path, config="digits"),
    "an object": lambda path: rewrite(path, config="!!python/object/apply:os.system [touch trace]"),
    "laughs": lambda path: rewrite(
        path,
        config="a: &a [x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ),
    "braces": lambda path: rewrite(path, config="{" * 800),
    "another architecture": lambda path: configured(path, model={"name": "mlp", "hidden": [5]}),
    "a huge architecture": lambda path: configured(path, model={"name": "mlp", "hidden": [10**12]}),
    "a module to import": lambda path: configured(path, aggregator={"name": "hostile_module:Rule"}),
    "a path as a name": lambda path: configured(path, attack="../../../../etc/passwd"),
    "an unknown key": lambda path: configured(path, nonsense=1),
    "weights of another type": lambda path: save_file({"x": torch.zeros(2)}, path, metadata=about(path)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_one_line_and_nothing_executed(case: str, weights: Path, tmp_path: Path, capfd):
    verb = "analyze" if list(HOSTILE).index(case) % 4 == 0 else "show"  # both begin with `find`
    (tmp_path / "hostile_module.py").write_text("open('trace', 'w')")
    HOSTILE[case](weights)
    assert main(["models", verb, NAME]) == 2
    told = capfd.readouterr()
    assert told.err.startswith(f"error: {NAME}/1")
    assert told.err.count("\n") == 1
    assert len(told.err) < 2200
    assert "root:" not in told.err
    assert "hostile_module" not in sys.modules
    assert not list(tmp_path.rglob("trace")) + list(weights.parent.rglob("trace"))


BEYOND: dict[str, tuple[dict[str, Any], str]] = {
    "clients": ({"partition": {"name": "iid", "clients": 20_000}}, "partition.clients: 20,000 is more than the 10,000"),
    "epochs": ({"client": {"epochs": 10**9}}, "client.epochs: 1,000,000,000 is more than"),
    "cluster": ({"engine": "ray"}, "engine: a report trains on a cluster for trusted models only"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_a_report_trains_and_reads_within_bounds(case: str, weights: Path, capsys):
    slots, message = BEYOND[case]
    configured(weights, **slots)
    assert main(["models", "analyze", NAME]) == 2
    assert message in capsys.readouterr().err


def test_modules_of_a_trusted_model_are_imported(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "trusted_module.py").write_text(
        "from fl_lightning.aggregators import Mean\n\nclass Rule(Mean):\n    name = 'rule'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    configured(weights, aggregator={"name": "trusted_module:Rule"})
    with pytest.raises(ConfigError, match="not imported for a configuration that is not trusted"):
        tracking.find(NAME)
    assert type(tracking.find(NAME, trusted=True).experiment.aggregator).__name__ == "Rule"
    assert tracking.find(NAME).experiment.aggregator  # imported by now: nothing new is executed
    (tmp_path / "trusted_network.py").write_text("raise RuntimeError('executed')")
    configured(weights, model={"name": "lightning", "module": "trusted_network:Network"}, client={"loop": "module"})
    with pytest.raises(ConfigError, match=r"/1: trusted_network:Network is code .*--trust"):
        tracking.find(NAME)


def test_a_pickled_model_is_refused_by_mlflow(tmp_path: Path):
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException

    place = tmp_path / "model"
    mlflow.pytorch.save_model(torch.nn.Linear(2, 1), place, serialization_format="pickle", pip_requirements=["torch"])
    with pytest.raises(MlflowException, match=r"(?i)pickle"):
        mlflow.pytorch.load_model(str(place))
