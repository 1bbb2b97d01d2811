"""Losses that are chosen: golden numbers, torch as the oracle, and everybody who measures with them."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fl_lightning import Federation
from fl_lightning.errors import ConfigError
from fl_lightning.models import (
    CrossEntropy,
    Focal,
    Huber,
    Linear,
    Mlp,
    Mse,
    SampleLoss,
    cross_entropy,
    focal,
    loss_for,
)
from fl_lightning.randomness import generator
from fl_lightning.registry import registry

SCORES_BK = torch.randn(6, 4, generator=generator(0, "test"), dtype=torch.float64)
Y_B = torch.tensor([0, 1, 2, 3, 0, 1])


class Doubled(SampleLoss):
    """One of a user's own."""

    name: ClassVar[str] = "doubled"

    def __call__(self, scores_BK, y_B):
        return 2 * cross_entropy(scores_BK, y_B)


def test_focal_loss_is_the_printed_formula_and_cross_entropy_at_0():
    p_B = SCORES_BK.softmax(-1).gather(-1, Y_B[:, None]).squeeze(-1)
    assert_close(focal(SCORES_BK, Y_B, 2.0), -((1 - p_B) ** 2) * p_B.log())
    assert_close(focal(SCORES_BK, Y_B, 0.0), cross_entropy(SCORES_BK, Y_B))
    assert_close(focal(SCORES_BK, F.one_hot(Y_B, 4).double(), 2.0), focal(SCORES_BK, Y_B, 2.0))
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal(sure, torch.tensor([0]), 0.5).sum().backward()
    assert bool(sure.grad.isfinite().all())


def test_smoothing_and_huber_are_torch_s():
    smooth = CrossEntropy(label_smoothing=0.1)(SCORES_BK, Y_B)
    assert_close(smooth.mean(), F.cross_entropy(SCORES_BK, Y_B, label_smoothing=0.1))
    assert Huber(delta=2.0)(torch.tensor([[3.0]]), torch.zeros(1)).tolist() == [4.0]


def test_the_slot_is_open_and_a_loss_must_fit():
    assert registry("loss").build(f"{Doubled.__module__}:Doubled") == Doubled()
    assert loss_for(Mlp(), "classification", 10) == CrossEntropy()
    assert loss_for(Linear(), "regression", 1, Huber()) == Huber()
    with pytest.raises(ConfigError, match="needs cross_entropy"):
        loss_for(Mlp(), "classification", 10, Mse())


def test_clients_attackers_and_figures_use_what_is_chosen(tiny):
    """A doubled loss at half the learning rate is the same training, and twice the figure."""
    settings = {
        "rounds": 2,
        "attack": {"name": "model_replacement", "objective": "trigger"},
        "trainer": {"precision": 64},
    }
    plain, doubled = (
        Federation(tiny(**settings, **chosen))
        for chosen in (
            {},
            {
                "loss": f"{Doubled.__module__}:Doubled",
                "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
            },
        )
    )
    for federation in (plain, doubled):
        federation.run()
    assert_close(doubled.state.global_D, plain.state.global_D, rtol=0, atol=1e-10)
    assert_close(doubled.state.history[-1]["global/loss"], 2 * plain.state.history[-1]["global/loss"])


def test_every_engine_trains_with_it_and_configurations_keep_it(tiny):
    experiment = tiny(loss={"name": "focal", "gamma": 1.5}, rounds=1, trainer={"precision": 64})
    assert experiment.to_dict()["loss"] == {"name": "focal", "gamma": 1.5}
    assert experiment.loss == Focal(gamma=1.5)
    assert "loss" not in tiny().to_dict()
    assert tiny().override({"loss": "focal"}).loss == Focal()
    one, other = (Federation(experiment.override({"engine": engine})) for engine in ("sequential", "vectorized"))
    for federation in (one, other):
        federation.run()
    assert_close(one.state.global_D, other.state.global_D, rtol=0, atol=1e-10)
    assert float((one.state.global_D - one.initial_D).abs().max()) > 1e-3


def test_a_loss_that_does_not_fit_is_named_before_anything_is_trained(tiny):
    with pytest.raises(ConfigError, match="loss"):
        Federation(tiny(loss="mse"))
