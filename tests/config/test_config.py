"""Loading, overriding, validating and dumping experiments."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators import Krum, Mean, TrimmedMean
from fl_lightning.attacks import LabelFlip, ModelReplacement, Trigger
from fl_lightning.clients import Adam, Sgd
from fl_lightning.config import Experiment, dump, experiment_names, load, parse_bound
from fl_lightning.data import Digits, Mnist
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.models import Mlp
from fl_lightning.participation import Always, FromRound, Full, KOfN, Random
from fl_lightning.partition import Degree, Iid

# The canonical experiment; keys and names are public.
CANONICAL = """
seed: 0
rounds: 30
data: mnist
partition: {name: degree, clients: 50, p: 0.5, samples_per_client: 600}
model: {name: mlp, hidden: [128]}
client:
  epochs: 1
  batch_size: 32
  optimizer: {name: sgd, lr: 0.05, momentum: 0.0}
  callbacks: {}
participation: {name: full, malicious: 10}
attack: {name: label_flip, knowledge: full, objective: {name: label_map}}
defenses: {}
aggregator: {name: krum, n_byzantine: 10, squared: true}
server: {lr: 1.0}
engine: {name: sequential}
tracking: {register: never}
"""

# The rest of the keys.
EVERY_KEY = """
data: {name: fashion_mnist, normalize: false, validation: 2000}
participation: {name: k_of_n, k: 10, malicious: 5, forced: true, schedule: {name: random, probability: 0.1}}
client: {steps: 10, callbacks: {near: {name: proximal_pull, rho: 0.4}}}
attack: {name: model_replacement, boost: 5.0, objective: {name: target_samples, count: 1}}
server: {lr: 1.0, optimizer: sgd}
evaluation: {every: 1, twin: false}
engine: {name: sequential}
trainer: {accelerator: auto, precision: 32}
tracking: {experiment: my-study, register: best}
sweep:
  trials: 40
  jobs: 2
  sampler: tpe
  direction: maximize
  metric: attack/success
  constraints: {global/accuracy: ">= 0.85"}
  space: {attack.boost: {low: 1, high: 50, log: true}}
seeds: [0, 1, 2]
"""

BASE: dict[str, Any] = {"data": "digits", "partition": {"name": "iid", "clients": 10}}


def error_of(tree: Any, overrides: list[str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tree, overrides or [])
    assert "\n" not in str(caught.value), "one clear line"
    return caught.value


# --- loading -----------------------------------------------------------------------------------------------------------


def test_the_canonical_experiment():
    experiment = load(yaml.safe_load(CANONICAL))
    assert experiment.data == Mnist()
    assert experiment.partition == Degree(clients=50, p=0.5, samples_per_client=600)
    assert experiment.participation == Full(malicious=10, schedule=Always())
    assert experiment.client.optimizer == Sgd(lr=0.05)
    assert experiment.aggregator == Krum(n_byzantine=10, squared=True)
    assert isinstance(experiment.attack, LabelFlip)
    assert experiment.attack.knowledge == "full"
    assert load(experiment.to_dict()) == experiment


def test_the_rest_of_the_keys():
    experiment = load(yaml.safe_load(EVERY_KEY))
    assert experiment.participation == KOfN(k=10, malicious=5, forced=True, schedule=Random(probability=0.1))
    assert experiment.client.steps == 10
    assert experiment.client.callbacks["near"].to_dict() == {"name": "proximal_pull", "rho": 0.4}
    assert experiment.seeds == (0, 1, 2)
    assert experiment.sweep.space == {"attack.boost": {"low": 1, "high": 50, "log": True}}
    assert load(experiment.to_dict()) == experiment


def test_everything_but_data_has_the_default_of_the_canonical_experiment():
    experiment = load({"data": "mnist"})
    assert experiment.rounds == 30
    assert experiment.partition == Degree(clients=50, p=0.5, samples_per_client=600)
    assert experiment.model == Mlp(hidden=(128,))
    assert experiment.client.optimizer == Sgd(lr=0.05, momentum=0.0)
    assert (experiment.client.epochs, experiment.client.batch_size, experiment.client.steps) == (1, 32, None)
    assert experiment.participation == Full(malicious=0)
    assert experiment.attack is None
    assert experiment.defenses == {}
    assert experiment.aggregator == Mean()
    assert experiment.server.lr == 1.0
    assert (experiment.tracking.register, experiment.tracking.models) == ("auto", "winners")
    assert "data: required" in str(error_of({}))


def test_a_string_names_a_file_in_configs():
    experiment = load(BASE | {"aggregator": "trimmed_mean", "partition": "shards", "model": "mlp"})
    assert experiment.aggregator == TrimmedMean(n_byzantine=20)  # auto: a fifth of the clients
    assert experiment.partition.clients == 100


def test_loading_leaves_the_mapping_alone():
    tree = {"data": "digits", "partition": {"name": "iid", "clients": 10}, "model": {"name": "mlp", "hidden": [4]}}
    before = yaml.safe_dump(tree)
    load(tree, ["model.hidden=[5]", "partition.clients=7"])
    assert yaml.safe_dump(tree) == before


def test_files(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: digits\npartition: {name: iid, clients: 4}\n")
    assert load(path).partition == Iid(clients=4)
    assert load(str(path), ["rounds=7"]).rounds == 7
    path.write_text("- 1\n- 2\n")
    assert "must hold a mapping, got list" in str(error_of(path))
    path.write_text("a: [1\n")
    assert "is not YAML" in str(error_of(path).message.splitlines()[0])
    path.write_text("")
    assert "must hold a mapping" in str(error_of(path))
    missing = error_of("mnits")
    assert "no experiment 'mnits'" in str(missing)
    assert "did you mean 'mnist'?" in str(missing)


def test_shipped_experiments_are_listed():
    assert {"digits", "mnist", "mnist_clean", "mnist_backdoor"} <= set(experiment_names())
    assert experiment_names() == sorted(experiment_names())


# --- overrides ---------------------------------------------------------------------------------------------------------


def test_overrides_come_last_and_are_yaml():
    experiment = load("digits", ["rounds=3", "model.hidden=[4, 5]", "attack=null", "client.optimizer={name: adam}"])
    assert experiment.rounds == 3
    assert experiment.model == Mlp(hidden=(4, 5))
    assert experiment.attack is None
    assert experiment.client.optimizer == Adam()
    assert load("digits", ["rounds=3", "rounds=4"]).rounds == 4


def test_an_override_looks_into_what_a_name_stands_for():
    experiment = load("digits", ["attack.boost=7", "attack.objective.mapping={5: 7}"])
    assert isinstance(experiment.attack, LabelFlip)
    assert experiment.attack.boost == 7
    assert experiment.attack.objective.mapping == {5: 7}
    trigger = load(BASE | {"attack": "model_replacement"}, ["attack.objective.label=4"]).attack
    assert isinstance(trigger, ModelReplacement)
    assert trigger.objective == Trigger(label=4)


def test_an_override_finds_what_is_there_by_default():
    assert load(BASE, ["model.hidden=[4]"]).model == Mlp(hidden=(4,))
    assert load(BASE, ["client.optimizer.lr=0.3"]).client.optimizer == Sgd(lr=0.3)
    assert load(BASE | {"client": {"epochs": 2}}, ["client.optimizer.momentum=0.9"]).client.epochs == 2
    assert load(BASE, ["participation.malicious=2"]).participation.malicious == 2
    inline = load(BASE | {"attack": {"name": "model_replacement"}}, ["attack.objective.label=4"])
    assert inline.attack is not None
    assert inline.attack.objective == Trigger(label=4)
    # ... but another name does not inherit the settings of the default.
    assert load(BASE, ["model.name=lenet5"]).model.name == "lenet5"
    adam = load(BASE | {"client": {"optimizer": {"name": "sgd", "lr": 0.3}}}, ["client.optimizer.name=adam"])
    assert adam.client.optimizer == Adam(lr=0.3)


def test_an_override_may_repair_what_is_wrong():
    assert load(BASE | {"rounds": 0}, ["rounds=2"]).rounds == 2


def test_override_gives_a_newly_validated_experiment():
    experiment = load("digits")
    changed = experiment.override({"attack.boost": 5.0, "server.lr": 0.5})
    assert changed.attack is not None
    assert changed.attack.boost == 5.0  # type: ignore[attr-defined]
    assert changed.server.lr == 0.5
    assert experiment.server.lr == 1.0
    with pytest.raises(ConfigError, match="boots"):
        experiment.override({"attack.boots": 1})
    with pytest.raises(ConfigError, match=r"server\.lr.*greater than 0.*got -1"):
        experiment.override({"server.lr": -1})


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("rounds", ["an override is written path=value", "'rounds'"]),
        ("rounds=[1", ["rounds is not YAML", "expected ',' or ']'"]),
        ("rounds.x=1", ["rounds is 10", "no key 'x'"]),
        ("atack.boost=1", ["atack", "unknown key", "did you mean 'attack'?"]),
        ("attack.bost=1", ["attack.bost", "did you mean 'boost'?"]),
        ("model.hidden=[0]", ["model.hidden.0", "got 0"]),
        ("aggregator=krumm", ["aggregator", "unknown aggregator 'krumm'", "did you mean 'krum'?"]),
    ],
)
def test_bad_overrides(override: str, parts: list[str]):
    message = str(error_of("digits", [override]))
    for part in parts:
        assert part in message


# --- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "path", "parts"),
    [
        ({"agregator": "krum"}, "agregator", ["unknown key", "did you mean 'aggregator'?"]),
        ({"data": "digitz"}, "data", ["unknown data 'digitz'", "did you mean 'digits'?"]),
        ({"rounds": 0}, "rounds", ["greater than or equal to 1", "got 0"]),
        ({"rounds": "many"}, "rounds", ["got 'many'"]),
        ({"seed": -1}, "seed", ["got -1"]),
        ({"client": {"optimizer": {"name": "sgd", "lr": 0}}}, "client.optimizer.lr", ["greater than 0", "got 0"]),
        ({"client": {"optimiser": {"name": "sgd"}}}, "client.optimiser", ["unknown key"]),
        ({"client": {"callbacks": {"x": "nope"}}}, "client.callbacks.x", ["unknown callback 'nope'"]),
        ({"client": {"callbacks": {"x": {"name": "proximal_pull", "roh": 1}}}}, "client.callbacks.x.roh", ["'rho'"]),
        ({"client": {"callbacks": {"x": {"name": "proximal_pull", "rho": -1}}}}, "client.callbacks.x", ["got -1"]),
        ({"client": "fast"}, "client", ["unknown client 'fast'"]),
        ({"participation": {"name": "full", "malicious": 11}}, "participation.malicious", ["at most 10", "got 11"]),
        ({"participation": {"name": "k_of_n", "k": 11}}, "participation", ["11 participants", "got 10"]),
        ({"participation": {"name": "full", "forced": True}}, "participation", ["'forced' has no meaning"]),
        (
            {"participation": {"name": "full", "schedule": {"name": "once", "round": -1}}},
            "participation.schedule.round",
            ["got -1"],
        ),
        ({"aggregator": {"name": "krum", "n_byzantine": 4}}, "aggregator", ["Krum needs C > 2f + 2", "C=10", "f=4"]),
        (
            {"aggregator": {"name": "krum", "n_byzantine": 2}, "participation": {"name": "k_of_n", "k": 5}},
            "aggregator",
            ["C=5", "f=2"],
        ),
        ({"seeds": [1, 1]}, "seeds", ["must differ", "[1, 1]"]),
        ({"sweep": {"constraints": {"global/accuracy": "> 1"}}}, "sweep.constraints.global/accuracy", ["got '> 1'"]),
        ({"sweep": {"sampler": "tpee"}}, "sweep.sampler", ["got 'tpee'"]),
        ({"evaluation": {"every": 0}}, "evaluation.every", ["got 0"]),
        ({"trainer": {"precision": 16}}, "trainer.precision", ["got 16"]),
        ({"tracking": {"register": "sometimes"}}, "tracking.register", ["got 'sometimes'"]),
        ({"attack": {"name": "label_flip", "objective": "untargeted"}}, "attack", ["got 'untargeted'"]),
        ({"attack": {"name": "label_flip", "visible_updates": 3}}, "attack", ["partial", "'none'"]),
        ({"attack": {"name": "label_flip", "knowledge": "some"}}, "attack.knowledge", ["got 'some'"]),
        (
            {"attack": {"name": "label_flip", "objective": {"name": "label_map", "mapping": "shfit"}}},
            "attack.objective.mapping",
            ["'shift'", "got 'shfit'"],
        ),
        ({"defenses": {"check": "nothing"}}, "defenses.check", ["unknown defense 'nothing'"]),
        ({"server": {"optimizer": "adamw"}}, "server.optimizer", ["got 'adamw'"]),
    ],
)
def test_what_cannot_run_is_refused_at_load_time(change: dict[str, Any], path: str, parts: list[str]):
    error = error_of(BASE | change)
    assert error.path == path
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize(("text", "value"), [(">= 0.85", (1, 0.85)), ("<= 2", (-1, 2.0)), (" >= -1e-3 ", (1, -1e-3))])
def test_bounds(text: str, value: tuple[int, float]):
    assert parse_bound("m", text) == value


@pytest.mark.parametrize("text", ["0.85", "> 1", ">= high", "=> 1", ""])
def test_bad_bounds(text: str):
    with pytest.raises(ConfigError, match=r"global/accuracy: expected '>= number'"):
        parse_bound("global/accuracy", text)


# --- dumping -----------------------------------------------------------------------------------------------------------


def test_dump_is_plain_yaml_that_loads_to_the_same():
    experiment = load(yaml.safe_load(EVERY_KEY))
    text = dump(experiment)
    assert "!!" not in text
    assert load(yaml.safe_load(text)) == experiment
    assert list(yaml.safe_load(text))[:3] == ["seed", "seeds", "rounds"]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rounds=st.integers(1, 1000),
    lr=st.floats(1e-12, 1e6),
    hidden=st.lists(st.integers(1, 512), max_size=3),
    boost=st.floats(0, 1e9),
    mapping=st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=3),
    schedule=st.sampled_from([Always(), FromRound(round=3), Random(probability=1 / 3)]),
)
def test_round_trip_of_random_settings(
    seed: int, rounds: int, lr: float, hidden: list[int], boost: float, mapping: dict[int, int], schedule: Any
):
    experiment = load(
        BASE
        | {
            "seed": seed,
            "rounds": rounds,
            "model": {"name": "mlp", "hidden": hidden},
            "client": {"optimizer": {"name": "sgd", "lr": lr}},
            "attack": {"name": "label_flip", "boost": boost, "objective": {"name": "label_map", "mapping": mapping}},
            "participation": {"name": "k_of_n", "k": 3, "malicious": 2, "schedule": schedule},
        }
    )
    again = load(yaml.safe_load(dump(experiment)))
    assert again == experiment
    assert again.digest() == experiment.digest()


def test_experiments_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load("digits").rounds = 3


def test_digest_depends_on_every_setting_and_on_nothing_else():
    experiment = load("digits")
    assert len(experiment.digest()) == 12
    assert int(experiment.digest(), 16) >= 0
    assert load("digits").digest() == experiment.digest()
    shuffled = dict(reversed(list(experiment.to_dict().items())))
    assert load(shuffled).digest() == experiment.digest()
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"attack.boost": 1.0001},
        {"participation.malicious": 1},
        {"tracking.register": "best"},
        {"fast": True},
    ]
    digests = {experiment.override(change).digest() for change in changes}
    assert len(digests | {experiment.digest()}) == len(changes) + 1


def test_the_fingerprint_leaves_out_what_no_figure_depends_on():
    experiment = load("digits")
    same: list[dict[str, Any]] = [{"sweep": "quick"}, {"tracking.register": "best"}, {"tracking.keep_rounds": [1]}]
    assert {experiment.override(change).fingerprint() for change in same} == {experiment.fingerprint()}
    others: list[dict[str, Any]] = [{"seed": 1}, {"rounds": 9}, {"server.lr": 0.5}, {"fast": True}]
    prints = {experiment.override(change).fingerprint() for change in others}
    assert len(prints | {experiment.fingerprint()}) == len(others) + 1


# --- --fast ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", experiment_names())
def test_faster_is_small_and_changes_nothing_else(name: str):
    experiment = load(name)
    fast = experiment.faster()
    assert isinstance(fast, Experiment)
    assert fast.fast
    assert fast.rounds <= 2
    assert fast.sweep.trials <= 3
    assert fast.partition.samples_per_client is not None
    dealt = fast.partition.samples_per_client * fast.partition.clients
    assert 1 <= dealt <= len(fast.data.synthetic().train)
    assert load(fast.to_dict()) == fast
    untouched = ("seed", "data", "model", "client", "attack", "aggregator", "participation", "defenses", "server")
    for slot in untouched:
        assert getattr(fast, slot) == getattr(experiment, slot)


def test_faster_never_makes_anything_larger():
    experiment = load({"data": Digits(train_samples=100), "rounds": 1, "sweep": {"trials": 1}})
    fast = experiment.override({"partition": {"name": "iid", "clients": 5, "samples_per_client": 3}}).faster()
    assert (fast.rounds, fast.sweep.trials, fast.partition.samples_per_client) == (1, 1, 3)


def test_clients_weigh_by_samples_unless_all_are_to_count_the_same(tiny):
    sizes = {"name": "quantity", "clients": 5, "alpha": 1.0}
    weighted, equal = (
        Federation(tiny(rounds=1, partition=sizes, attack=None, server={"weights": weights}))
        for weights in ("samples", "equal")
    )
    trained = equal.train(equal.cohort())
    updates_CD = trained.updates_CD
    counts_C = torch.tensor([float(len(job.rows)) for job in trained.jobs])
    assert counts_C.std() > 0
    torch.testing.assert_close(equal.run().global_D, equal.initial_D + updates_CD.mean(0))
    share_C = counts_C / counts_C.sum()
    torch.testing.assert_close(weighted.run().global_D, weighted.initial_D + share_C @ updates_CD)
