"""Every YAML that is shipped: it loads, it round-trips, and what it configures runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fl_lightning.config import Experiment, dump, experiment_names, load
from fl_lightning.federation import Federation
from fl_lightning.paths import CONFIGS
from fl_lightning.registry import SLOTS, named_config, registry
from fl_lightning.search import search_space, sweep
from fl_lightning.search._fitting import all_that_fit

COMPONENTS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name in SLOTS)
BASE = {
    "data": "digits",
    "partition": {"name": "iid", "clients": 12},
    "participation": {"name": "full", "malicious": 2},
}


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_every_component_has_its_yaml():
    missing = [
        f"{slot}/{cls.name}"
        for slot in sorted({path.parent.name for path in COMPONENTS})
        for cls in registry(slot)
        if not (CONFIGS / slot / f"{cls.name}.yaml").is_file()
    ]
    assert not missing


@pytest.mark.parametrize("path", COMPONENTS, ids=ids)
def test_component_yaml_loads_and_names_itself(path: Path):
    slot = path.parent.name
    built = registry(slot).build(path.stem)
    assert built.name == yaml.safe_load(path.read_text())["name"]
    assert registry(slot).build(built.to_dict()) == built
    assert path.read_text().startswith("#"), "a comment says where the setting comes from"


@pytest.mark.parametrize("path", sorted((CONFIGS / "client").glob("*.yaml")), ids=ids)
def test_client_yaml_loads(path: Path):
    assert (
        load(BASE | {"client": path.stem}).client == load(BASE | {"client": named_config("client", path.stem)}).client
    )


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweep").glob("*.yaml")), ids=ids)
def test_sweep_yaml_loads_and_has_a_space(path: Path):
    experiment = load(BASE | {"attack": "sign_flip", "sweep": path.stem})
    assert search_space(all_that_fit(experiment))
    assert load(yaml.safe_load(dump(experiment))) == experiment


SWEEPS = [
    pytest.param(path, marks=[pytest.mark.slow] if path.stem.startswith("strongest") else [], id=path.stem)
    for path in sorted((CONFIGS / "sweep").glob("*.yaml"))
]


@pytest.mark.parametrize("path", SWEEPS)
def test_sweep_yaml_runs(path: Path, store_folder: Path):
    defended = {"defenses": {"clip": "norm_bound"}, "client": "fl_wbc"} if path.stem == "defender" else {}
    settings = named_config("sweep", path.stem) | {"trials": 2, "jobs": 1, "confirm_seeds": [1001]}
    light = {"tracking": {"models": False, "register": "never"}}
    outcome = sweep(load(BASE | light | {"attack": "alie", "rounds": 2, "sweep": settings} | defended), "tiny")
    assert len(outcome.trials) == 2
    assert outcome.winner


HEAVY = {
    *("mnist_multi_party", "mnist_deep", "mnist_deep_once", "mnist_fang_krum"),  # convolutions, searches of attackers
    *("vae", "dagmm", "anp", "snowball", "resnet18", "pdrr_cnn", "model_replacement_foreseen", "a3fl", "iba"),
}
"""Files whose two rounds take long: the slow tests run them."""


def daily(stem: str) -> Any:
    """A case of every day, or of the slow tests where it takes long."""
    return pytest.param(stem, marks=[pytest.mark.slow] if stem in HEAVY else [])


def shipped(slot: str) -> list[Any]:
    """Names of the files of a slot."""
    return [daily(path.stem) for path in COMPONENTS if path.parent.name == slot]


def run_fast(experiment: Experiment) -> None:
    """Two rounds; whatever happens in them, the figures are numbers and the model stays finite."""
    federation = Federation(experiment.faster())
    state = federation.run()
    assert len(state.history) == min(2, experiment.rounds) or state.stopped
    assert bool(torch.isfinite(state.global_D).all())
    figures = {name: value for figures in state.history for name, value in figures.items()}
    assert figures
    assert all(value == value for value in figures.values()), figures


@pytest.mark.parametrize("name", experiment_names())
def test_experiment_yaml_round_trips(name: str):
    experiment = load(name)
    assert load(yaml.safe_load(dump(experiment))) == experiment


@pytest.mark.parametrize("name", [daily(name) for name in experiment_names()])
def test_experiment_yaml_runs(name: str):
    run_fast(load(name))


@pytest.mark.parametrize("stem", shipped("attack"))
def test_attack_yaml_runs(stem: str):
    run_fast(load(BASE | {"attack": stem}))


@pytest.mark.parametrize("path", [p for p in COMPONENTS if p.parent.name == "aggregator"], ids=ids)
def test_aggregator_yaml_runs(path: Path):
    server = {"data": {"name": "digits", "validation": 100}, "partition": {"name": "iid", "clients": 10}}
    run_fast(load(BASE | server | {"attack": "gaussian", "aggregator": path.stem}))


@pytest.mark.parametrize("stem", shipped("defense"))
def test_defense_yaml_runs(stem: str):
    server = {"data": {"name": "digits", "validation": 100}, "partition": {"name": "iid", "clients": 10}}
    server["aggregator"] = {"name": "trimmed_mean", "n_byzantine": 2} if stem == "pdrr" else {"name": "mean"}
    run_fast(load(BASE | server | {"attack": "sign_flip", "defenses": {stem: stem}}))


@pytest.mark.parametrize("path", [p for p in COMPONENTS if p.parent.name == "partition"], ids=ids)
def test_partition_yaml_runs(path: Path):
    data = "femnist" if path.stem == "natural" else "digits"  # natural: by writer
    run_fast(load(BASE | {"data": data, "partition": path.stem, "participation": "full"}))


LIGHT = {"partition": {"name": "iid", "clients": 3}, "client": {"steps": 1, "batch_size": 4}}
OWN_DATA = {
    "linear": "house_prices",
    "svm": "mnist_parity",
    "cmp_cifar_cnn": "cifar10",
    "wbc_cifar_cnn": "cifar10",
    "resnet18": "cifar10",
}


OF_USERS = {"frame", "image_folder", "hugging_face", "datamodule"}
"""Files that show how data of one's own are named; `tests/data` runs them on data that it makes."""


@pytest.mark.parametrize("path", [p for p in COMPONENTS if p.parent.name == "data" and p.stem not in OF_USERS], ids=ids)
def test_data_yaml_runs(path: Path):
    model = "linear" if path.stem == "house_prices" else "mlp"
    run_fast(load(LIGHT | {"data": path.stem, "model": model}))


@pytest.mark.parametrize("stem", shipped("model"))
def test_model_yaml_runs(stem: str):
    data = {"name": OWN_DATA.get(stem, "mnist"), "test_samples": 20}
    if stem == "lightning":  # the example trains itself, and is made for 64 numbers a row
        light = LIGHT | {"client": {"loop": "module", "batch_size": 16}}
        run_fast(load(light | {"data": "digits", "model": stem, "rounds": 1}))
        return
    run_fast(load(LIGHT | {"data": data, "model": stem, "rounds": 1}))


@pytest.mark.parametrize("path", [p for p in COMPONENTS if p.parent.name == "engine"], ids=ids)
def test_engine_yaml_runs(path: Path, request: pytest.FixtureRequest):
    if path.stem == "ray":
        request.getfixturevalue("local_ray")
    run_fast(load(BASE | {"engine": path.stem}))
