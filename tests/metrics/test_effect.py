import pytest
import torch
from torch import nn

from fl_lightning.config import load
from fl_lightning.data import Samples
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.metrics import carried_through, null_space, predicted_effect
from fl_lightning.models import FlatNetwork, Mlp
from fl_lightning.randomness import generator


class Quadratic:
    """F(w) = w' H w / 2 with another diagonal H for each client."""

    def hessian_product(self, theta, samples, vector):
        return samples.x * theta, samples.x * vector


def test_golden_example():
    delta = torch.ones(2)
    steps = [[Samples(torch.tensor(h), torch.zeros(1))] * 3 for h in ([1.0, 0.0], [0.0, 2.0])]
    carried = torch.stack([carried_through(Quadratic(), torch.tensor([3.0, -1.0]), delta, own, 0.1) for own in steps])
    torch.testing.assert_close(predicted_effect(delta, carried, torch.ones(2)), torch.tensor([0.8645, 0.756]))
    half = predicted_effect(delta, carried, torch.ones(2), server_lr=0.5)
    torch.testing.assert_close(half, (1 + torch.tensor([0.8645, 0.756])) / 2)
    norms = [null_space(Quadratic(), delta, delta, own[0], generator(0, "r"))[0] for own in steps]
    assert norms == pytest.approx([1, 2])


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flat = FlatNetwork(Mlp(hidden=(6,)).build((5,), 3).double(), "cross_entropy")
    x = torch.randn(20, 5, generator=generator(0, "x"), dtype=torch.float64)
    return flat, Samples(x, torch.randint(3, (20,), generator=generator(0, "y")))


def test_hessian_product_against_the_hessian_itself():
    flat, samples = network()
    theta = flat.vector()

    def loss(w):
        scores = torch.func.functional_call(flat.network, flat.split(w), (samples.x,))
        return nn.functional.cross_entropy(scores, samples.y)

    hessian = torch.autograd.functional.hessian(loss, theta)
    vector = torch.randn(flat.dim, generator=generator(0, "v"), dtype=torch.float64)
    gradient, product = flat.hessian_product(theta, samples, vector)
    torch.testing.assert_close(product, hessian @ vector)
    torch.testing.assert_close(gradient, flat.gradient(theta, samples))
    assert not theta.requires_grad


def test_prediction_is_the_derivative_of_local_training():
    flat, samples = network()
    theta, batches = flat.vector(), [samples[torch.arange(4 * i, 4 * i + 4)] for i in range(5)]
    vector = torch.randn(flat.dim, generator=generator(1, "v"), dtype=torch.float64)

    def trained(w):
        for batch in batches:
            w = w - 0.1 * flat.gradient(w, batch)
        return w

    step = 1e-6
    numeric = (trained(theta + step * vector) - trained(theta - step * vector)) / (2 * step)
    torch.testing.assert_close(carried_through(flat, theta, vector, batches, 0.1), numeric, atol=1e-6, rtol=1e-5)


def test_null_space_sees_dead_directions():
    flat, samples = network()
    samples.x[:, 0] = 0
    dead = torch.zeros(flat.dim, dtype=torch.float64)
    flat.split(dead)[flat.names[0]][:, 0] = 1.0
    along, beside = null_space(flat, flat.vector(), dead, samples, generator(0, "r"))
    assert along < 1e-12 < beside


def attacked(**slots):
    return {
        "data": {"name": "digits", "train_samples": 200, "test_samples": 100},
        "rounds": 3,
        "partition": {"name": "iid", "clients": 5},
        "model": {"name": "linear"},
        "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.01}},
        "participation": {"name": "full", "malicious": 1, "schedule": {"name": "once", "round": 0}},
        "attack": {"name": "sign_flip"},
        "evaluation": {"twin": True, "effect": True},
        **slots,
    }


def test_logged_beside_the_exact_effect():
    federation = Federation(load(attacked()))
    history = federation.run().history
    assert "impact/aep_predicted" not in history[0]
    assert history[0]["impact/null_space"] > 0
    for metrics in history[1:]:
        # nearly quadratic: small steps of a linear classifier
        assert metrics["impact/aep_predicted"] == pytest.approx(metrics["impact/aep"], rel=0.02)
        assert metrics["impact/aep_cosine"] > 0.999
        assert metrics["impact/null_space_random"] > 0
    assert "time/effect" in history[0]


def test_continues_from_a_saved_state():
    whole, first, second = (Federation(load(attacked())) for _ in range(3))
    whole.run()
    first.round()
    first.round()
    second.load_state_dict(first.state_dict())
    second.run()
    name = "impact/aep_predicted"
    assert second.state.history[-1][name] == whole.state.history[-1][name]


def test_without_what_it_needs():
    with pytest.raises(ConfigError, match=r"evaluation\.effect: needs the attack-free twin"):
        load(attacked(evaluation={"effect": True}))
    with pytest.raises(ConfigError, match=r"momentum=0\.5"):
        load(attacked(client={"optimizer": {"name": "sgd", "momentum": 0.5}}))
    unhurt = Federation(load(attacked(participation={"name": "full", "schedule": "never"})))
    assert "impact/null_space" not in unhurt.round().metrics
