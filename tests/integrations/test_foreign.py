"""Configurations of neighbours, in small: what they become, and that whatever is not translated is named."""

import json

import pytest
import yaml

from fl_lightning import cli
from fl_lightning._matrix import Matrix
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.integrations import read_foreign

BYZFL = {
    "benchmark_config": {
        "training_algorithm": {"name": "DSGD", "parameters": {}},
        "nb_steps": 40,
        "training_seed": 3,
        "nb_training_seeds": 2,
        "nb_honest_clients": 8,
        "f": [1, 2],
        "data_distribution_seed": 3,
        "data_distribution": [{"name": "gamma_similarity_niid", "distribution_parameter": [1.0, 0.25]}],
    },
    "model": {"name": "logreg_mnist", "dataset_name": "mnist", "loss": "NLLLoss", "learning_rate": 0.1},
    "aggregator": [
        {"name": "TrMean", "parameters": {}},
        {"name": "GeometricMedian", "parameters": {"nu": 0.2, "T": 5}},
    ],
    "pre_aggregators": [{"name": "NNM", "parameters": {}}],
    "honest_clients": {"momentum": 0.9, "batch_size": 25},
    "attack": [{"name": "ALittleIsEnough", "parameters": {"tau": 2.5}}, {"name": "Unheard", "parameters": {}}],
    "evaluation_and_results": {"evaluation_delta": 10, "results_directory": "./results"},
}
FLPOISON = """
seed: 4
epochs: 30
algorithm: FedOpt
optimizer: SGD
momentum: 0.9
num_clients: 20
batch_size: 64
learning_rate: 0.01
local_epochs: 5
model: lenet
dataset: MNIST
distribution: non-iid
dirichlet_alpha: 0.5
num_adv: 0.20
attack: LabelFlipping
defense: Krum
moon_phase: full
attacks:
  - attack: LabelFlipping
    attack_params: {attack_model: targeted, source_label: 3, target_label: 7, attack_strategy: continuous}
  - attack: BadNets
    attack_params: {trigger_size: 4, target_label: 7, poisoning_ratio: 0.3}
  - attack: IPM
    attack_params: {scaling_factor: 0.5, attack_start_epoch: 11}
defenses:
  - defense: Krum
    defense_params: {enable_check: false}
  - defense: Bulyan
  - defense: NormClipping
    defense_params: {weakDP: true, norm_threshold: 3, noise_std: 0.002}
"""
BACKFED = {
    "base": """
defaults: [_self_, {override hydra/job_logging: rich}]
aggregator: unweighted_fedavg
no_attack: False
seed: 11
num_rounds: 50
num_clients: 100
num_clients_per_round: 10
dataset: ???
partitioner: dirichlet
client_config: {dataset: "${dataset}", local_epochs: 2, batch_size: 64, optimizer: sgd, lr: 0.1, weight_decay: 5e-4}
aggregator_config:
  weakdp: {_target_: backfed.servers.WeakDPServer, std_dev: 0.025, clipping_norm: 5, eta: 0.5}
""",
    "atk_config/shot": """
data_poison_method: pattern
model_poison_method: neurotoxin
use_atk_optimizer: True
poisoned_lr: 0.05
poison_epochs: 6
poison_rate: 0.25
fraction_adversaries: 0.04
attack_type: all2one
target_class: 2
poison_start_round: 11
poison_end_round: 60
poison_frequency: multi-shot
selection_scheme: all-adversary
tea_time: true
""",
    "mine": """
defaults: [base, {atk_config: shot}, _self_]
aggregator: weakdp
dataset: MNIST
model: LeNet
alpha: 0.5
""",
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "byzfl.json").write_text(json.dumps(BYZFL))
    (tmp_path / "flpoison.yaml").write_text(FLPOISON)
    (tmp_path / "atk_config").mkdir()
    for name, text in BACKFED.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_byzfl_becomes_a_matrix(files):
    foreign = read_foreign(files / "byzfl.json")
    assert (foreign.origin, foreign.kind) == ("ByzFL", "matrix")
    cells = Matrix(**foreign.config).experiments()
    assert len(cells) == 2 * 2 * 2 * 2  # f, distributions, rules; the attack and no attack
    cell = cells["ALittleIsEnough | TrMean, f=2, gamma_similarity_niid 0.25"]
    assert cell.partition.to_dict() == {**cell.partition.to_dict(), "name": "degree", "p": 0.75, "clients": 10}
    assert cell.participation.malicious == 2
    assert cell.aggregator.name == "nnm-trimmed_mean"
    assert [step.n_byzantine for step in cell.aggregator.pre] == [2] == [cell.aggregator.rule.n_byzantine]
    assert (cell.attack.name, cell.attack.z, cell.attack.sign, cell.attack.knowledge) == ("alie", 2.5, "plus", "full")
    assert (cell.client.steps, cell.client.optimizer.lr, cell.rounds, cell.evaluation.every) == (1, 0.1, 40, 10)
    assert cell.defenses["momentum"].beta == 0.9  # kept between the rounds, not in the local optimizer
    assert foreign.config["seeds"] == [3, 4]
    assert [line for line in foreign.unknown if "Unheard" in line]
    assert not [line for line in foreign.unknown if "results_directory" in line]  # says nothing about figures


def test_flpoison_becomes_an_experiment_of_what_is_chosen(files):
    foreign = read_foreign(files / "flpoison.yaml")
    assert (foreign.origin, foreign.kind) == ("FLPoison", "experiment")
    experiment = load(foreign.config)
    assert experiment.attack.objective.mapping == {3: 7}
    assert (experiment.aggregator.name, experiment.aggregator.n_byzantine) == ("krum", 4)
    assert (experiment.partition.name, experiment.partition.alpha, experiment.client.epochs) == ("dirichlet", 0.5, 5)
    assert (experiment.seed, experiment.model.name, experiment.server.weights) == (4, "lenet5", "equal")
    assert foreign.unknown == ["moon_phase: full"]


def test_flpoison_becomes_a_matrix_of_all_that_is_listed(files):
    foreign = read_foreign(files / "flpoison.yaml", every=True)
    cells = Matrix(**foreign.config).experiments()
    assert len(cells) == (3 + 1) * 3
    assert cells["BadNets | NormClipping"].defenses["norm_bound"].noise_std == 0.002
    assert cells["BadNets | Krum"].attack.objective.size == 4
    assert "IPM.attack_start_epoch: 11" in foreign.unknown


def test_what_is_refused_here_is_named_with_the_reason(files):
    (files / "flpoison.yaml").write_text(FLPOISON.replace("num_adv: 0.20", "num_adv: 0.45"))
    foreign = read_foreign(files / "flpoison.yaml", every=True)
    assert list(foreign.config["servers"]) == ["NormClipping"]
    assert [line for line in foreign.unknown if line.startswith("Krum: refused here: ") and "f=9" in line]


def test_backfed_is_composed_of_its_files(files):
    foreign = read_foreign(files / "mine.yaml")
    assert (foreign.origin, foreign.kind) == ("BackFed", "experiment")
    experiment = load(foreign.config)
    assert experiment.client.optimizer.weight_decay == 5e-4  # a word for YAML, a number for Hydra
    assert (experiment.participation.k, experiment.participation.malicious) == (10, 4)
    assert experiment.participation.forced
    assert experiment.participation.schedule.to_dict() == {"name": "from_round", "round": 10}
    attack = experiment.attack
    assert (attack.name, attack.poison_fraction, attack.epochs, attack.lr_factor) == ("neurotoxin", 0.25, 6, 0.5)
    assert attack.objective.label == 2
    bound = experiment.defenses["norm_bound"]
    assert (bound.max_norm, bound.noise_std, experiment.server.lr) == (5, 0.025, 0.5)
    assert "atk_config.tea_time: True" in foreign.unknown


def test_backfed_s_fedprox_is_a_callback(files):
    (files / "mine.yaml").write_text(BACKFED["mine"].replace("weakdp", "fedprox"))
    (callback,) = load(read_foreign(files / "mine.yaml").config).client.callbacks.values()
    assert (callback.name, callback.options) == ("proximal_pull", {"rho": 0.01})


def test_the_command_prints_what_load_takes_and_names_the_rest(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert cli.main(["import", "flpoison.yaml"]) == 0
    out, err = capsys.readouterr()
    assert load(yaml.safe_load(out)).to_dict() == load(read_foreign(files / "flpoison.yaml").config).to_dict()
    assert "moon_phase" in out
    assert "moon_phase" in err
    assert cli.main(["import", "byzfl.json", "--out", "ours.yaml"]) == 0
    assert "fl-lightning matrix ours.yaml" in capsys.readouterr().out
    assert cli.main(["import", "byzfl.json", "--out", "ours.yaml"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds no mapping"),
        ("{rounds: 3}", "no configuration of ByzFL, FLPoison or BackFed"),
        ("{num_adv: 1, attack: IPM}", "num_clients: is missing"),
        ("{defaults: [../../etc], client_config: {}}", "no plain name"),
        ("{defaults: [self], client_config: {}}", "among its own defaults"),
        ("{defaults: [other], client_config: {}}", "needs other.yaml beside it"),
    ],
)
def test_other_files_are_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "self.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_foreign(tmp_path / "self.yaml")
