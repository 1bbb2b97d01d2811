"""3DFed as an attack: where its indicators lie, what they tell, and how noise and decoys follow."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from fl_lightning.attacks import ThreeDfed
from fl_lightning.attacks._flat_training import mean_loss
from fl_lightning.attacks._three_dfed import Memory, curvature, hidden_columns, indicators
from fl_lightning.config import load
from fl_lightning.data import Samples
from fl_lightning.federation import Federation
from fl_lightning.models import FlatNetwork
from fl_lightning.randomness import generator
from fl_lightning.registry import ConfigError

SCENE = {
    "data": {"name": "digits", "train_samples": 400, "test_samples": 60},
    "rounds": 3,
    "partition": {"name": "iid", "clients": 8},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"steps": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
    "participation": {"name": "full", "malicious": 2},
    "attack": "three_dfed",
    "evaluation": {"every": 3},
}


def network(*layers: int, seed: int = 0) -> FlatNetwork:
    modules: list[torch.nn.Module] = [torch.nn.Flatten()]
    for before, after in pairwise(layers):
        modules += [torch.nn.Linear(before, after), torch.nn.Tanh()]
    flat = FlatNetwork(torch.nn.Sequential(*modules[:-1]).double(), "cross_entropy")
    flat.load_(torch.randn(flat.dim, generator=generator(seed, "weights"), dtype=torch.float64))
    return flat


def test_curvature_is_the_row_sum_of_the_hessian():
    flat = network(3, 2, 3)
    x = torch.randn(5, 3, generator=generator(1, "x"), dtype=torch.float64)
    samples = Samples(x, torch.tensor([0, 1, 2, 1, 0]))
    hessian_DD = torch.autograd.functional.hessian(lambda theta_D: mean_loss(flat, theta_D, samples), flat.vector())
    assert torch.allclose(curvature(flat, flat.vector(), samples), hessian_DD.sum(1), atol=1e-12)


def test_indicators_lie_where_nothing_moves_and_the_loss_is_flat():
    moved_N = torch.arange(50.0)
    curved_N = torch.linspace(3, -3, 50)
    assert indicators(moved_N, curved_N, 2).tolist() == [19, 18], "of the twenty that move least the flattest"
    assert indicators(moved_N[:3], curved_N[:3], 5).tolist() == [2, 1, 0], "a small layer gives what it has"


def test_a_model_without_hidden_layer_is_refused():
    with pytest.raises(ConfigError, match="trained layers before it"):
        hidden_columns(network(4, 3))
    assert hidden_columns(network(4, 3, 2)) == slice(0, 12)


def rounds(**changes: object) -> list[dict[str, float]]:
    return Federation(load(SCENE | changes)).run().history


def test_a_server_that_averages_accepts_all_and_nothing_is_changed():
    history = rounds()
    assert "attack/accepted" not in history[0]
    for figures in history[1:]:
        assert figures["attack/accepted"] == 1
        assert figures["attack/decoys"] == 0
        assert figures["attack/alpha"] == pytest.approx(0.1), "one accepted group keeps its alpha"


def test_a_server_that_rejects_all_meets_decoys_and_other_masks():
    history = rounds(aggregator={"name": "krum", "n_byzantine": 2}, attack={"name": "three_dfed", "boost": 20.0})
    assert [figures["attack/selected"] for figures in history] == [0, 0, 0], "the scene: Krum takes neither"
    assert history[1]["attack/rejected"] == 1
    assert history[1]["attack/decoys"] == 1, "at least one attacker stays backdoored"
    assert history[1]["attack/alpha"] > 0.1


def test_rows_that_are_clipped_alike_read_accepted():
    history = rounds(defenses={"clip": {"name": "norm_bound", "max_norm": 0.2}})
    assert history[1]["attack/accepted"] == 1


def test_noise_at_the_server_ends_the_adapting():
    attack = ThreeDfed()
    memory = Memory(0, torch.tensor([0, 1]), torch.tensor([1.0, 1.0]).double(), 0, [0.7], 1, False)
    seen = SimpleNamespace(
        n_malicious=2, round=1, previous_D=torch.zeros(3), generator=lambda purpose, *keys: generator(0, purpose)
    )
    seen.global_D = torch.tensor([1.5, 0.1, 0.0])
    assert attack._adapted(seen, memory)[:3] == ([0.1], 0, True)
    assert attack._adapted(seen, memory._replace(blind=True))[:3] == ([0.1], 0, True)
    seen.global_D = torch.tensor([0.1, 0.0, 0.0])
    _, decoys, blind, told = attack._adapted(seen, memory)
    assert told == {"accepted": 0.5, "clipped": 0.0, "rejected": 0.5}
    assert (decoys, blind) == (1, False)
    seen.round = 5
    assert attack._adapted(seen, memory)[:3] == ([0.7], 1, False), "others have moved the model since"


def test_noise_cancels_in_every_group():
    flat = network(4, 6, 10)
    rows_MD = torch.randn(7, flat.dim, generator=generator(2, "rows"), dtype=torch.float64)
    seen = SimpleNamespace(flat=flat, generator=lambda purpose, *keys: generator(0, purpose, *keys))
    masked_MD = ThreeDfed()._masked(seen, rows_MD, rows_MD, 7, [0.3, 0.6])
    noise_MD = masked_MD - rows_MD
    for group in (noise_MD[:5], noise_MD[5:]):
        assert float(group.sum(0).abs().max()) < 1e-12
        assert float(group.abs().max()) > 0
    head = flat.layout.classifier
    touched_K = noise_MD[:, head.weight].view(7, *head.shape).abs().sum((0, 2)) > 0
    assert int(touched_K.sum()) == 5
    assert not touched_K[0], "the wished class has no noise"
    assert float(noise_MD[:, : head.weight.start].abs().max()) == 0
