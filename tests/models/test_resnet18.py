"""ResNet-18: its size, its normalisation, and what becomes of BatchNorm's statistics in a federation."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.models import FrozenNorm2d, Resnet18
from fl_lightning.registry import registry

SMALL = {"name": "resnet18", "width": 4, "groups": 2}


def federation(model: dict, engine: str = "sequential", **slots) -> Federation:
    return Federation(
        load(
            {
                "data": {"name": "digits", "train_samples": 60, "test_samples": 20},
                "rounds": 1,
                "partition": {"name": "iid", "clients": 3},
                "model": {**SMALL, **model},
                "client": {"batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.05}},
                "engine": engine,
                "trainer": {"accelerator": "cpu", "precision": 64},
                **slots,
            }
        )
    )


def test_twenty_convolutions_and_one_dense_layer():
    layers = list(Resnet18().build((3, 32, 32), 10).modules())
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == 17 + 3  # 18 layers with weights, 3 shortcuts
    assert sum(isinstance(layer, nn.Linear) for layer in layers) == 1
    assert sum(isinstance(layer, nn.GroupNorm) for layer in layers) == 20
    stages = Resnet18(width=8, groups=4).build((3, 32, 32), 10)[:-3](torch.zeros(2, 3, 32, 32))
    assert stages.shape == (2, 64, 4, 4)


def test_frozen_norm_is_batch_norm_in_eval_mode_at_the_start():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert_close(FrozenNorm2d(3)(x), nn.BatchNorm2d(3, eps=1e-12).eval()(x))


def test_wrong_numbers_are_refused():
    with pytest.raises(ConfigError, match="width 8 must be a multiple of groups 3"):
        registry("model").build({"name": "resnet18", "width": 8, "groups": 3})
    with pytest.raises(ConfigError, match=r"got inputs of shape \(64,\)"):
        Resnet18().build((64,), 10)


@pytest.mark.parametrize("model", [{}, {"norm": "batch", "buffers": "freeze"}], ids=["group", "freeze"])
def test_stacked_clients_get_the_same_numbers(model):
    vectors = [federation(model, engine).run().global_D for engine in ("sequential", "vectorized")]
    assert_close(*vectors, atol=1e-10, rtol=0)


@pytest.mark.parametrize("buffers", ["average", "local"])
@pytest.mark.filterwarnings("ignore")
def test_batch_norm_trains_and_the_order_of_clients_does_not_matter(buffers):
    made = federation({"norm": "batch", "buffers": buffers})
    cohort = made.cohort()
    forward = made.train(cohort).updates_CD
    backward = made.train(cohort._replace(clients=cohort.clients.flip(0))).updates_CD
    assert torch.equal(forward, backward.flip(0))
    assert forward.isfinite().all()
    assert (made.bench.flat.dim == made.bench.flat.trained) == (buffers == "local")


@pytest.mark.filterwarnings("ignore")
def test_averaged_statistics_are_the_mean_of_the_clients():
    made = federation({"norm": "batch"})
    flat = made.bench.flat
    assert flat.dim > flat.trained
    start_D = made.state.global_D
    updates_CD = made.train(made.cohort()).updates_CD
    statistics = updates_CD[:, flat.trained :]
    assert (statistics.abs().sum(1) > 0).all()
    assert not torch.equal(statistics[0], statistics[1])
    made.round()
    assert_close(made.state.global_D, start_D + updates_CD.mean(0))
    network = flat.load_(made.state.global_D)
    assert_close(network[1].running_mean, made.state.global_D[flat.trained :][: network[1].running_mean.numel()])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "attack",
    [
        "deep",
        "model_replacement",
        {"name": "alternating_minimization", "rho": 0.1, "objective": {"name": "target_samples", "count": 2}},
    ],
)
def test_attacks_with_callbacks_work_beside_statistics(attack):
    attack = {"name": attack} if isinstance(attack, str) else attack
    if attack["name"] == "deep":
        attack["curvature_samples"] = 2
    made = federation({"norm": "batch"}, attack=attack, participation={"name": "full", "malicious": 1})
    assert made.run().global_D.isfinite().all()
