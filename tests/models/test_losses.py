"""Per-sample losses, and a network as a function of one parameter vector."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from fl_lightning.data import Samples
from fl_lightning.errors import ConfigError
from fl_lightning.models import (
    LOSSES,
    CmpCifarCnn,
    Linear,
    Loss,
    Mlp,
    Svm,
    confidence,
    cross_entropy,
    hinge,
    loss_for,
    mse,
    predict,
)
from fl_lightning.models._flat import CHUNK, FlatNetwork
from fl_lightning.randomness import generator, key_of


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


# --- losses ------------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    scores = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    assert_close(cross_entropy(scores, torch.tensor([0, 1])), torch.tensor([math.log(4 / 3), math.log(2)]))


def test_cross_entropy_of_probabilities_is_the_mean_over_the_classes():
    scores, shares = normal(4, 3), normal(4, 3, seed=1).softmax(1)
    one_by_one = torch.stack([cross_entropy(scores, torch.full((4,), k)) for k in range(3)], dim=1)
    assert_close(cross_entropy(scores, shares), (shares * one_by_one).sum(1))


def test_hinge_by_hand():
    scores = torch.tensor([[2.0], [0.5], [-0.5], [-2.0]])
    assert hinge(scores, torch.ones(4, dtype=torch.long)).tolist() == [0.0, 0.5, 1.5, 3.0]
    assert hinge(scores, torch.zeros(4, dtype=torch.long)).tolist() == [3.0, 1.5, 0.5, 0.0]


def test_mse_by_hand():
    assert mse(torch.tensor([[1.0], [-2.0]]), torch.tensor([3.0, -2.0])).tolist() == [4.0, 0.0]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_one_loss_a_sample(loss: Loss):
    scores = normal(5, 10 if loss == "cross_entropy" else 1)
    y = normal(5) if loss == "mse" else torch.tensor([0, 1, 1, 0, 1])
    losses = LOSSES[loss](scores, y)
    assert losses.shape == (5,)
    for i in range(5):
        assert_close(LOSSES[loss](scores[i : i + 1], y[i : i + 1])[0], losses[i])


def test_predictions():
    assert predict(torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 4.0]])).tolist() == [1, 0]
    binary = predict(torch.tensor([[0.2], [-0.2], [0.0]]))
    assert binary.tolist() == [1, 0, 0]
    assert binary.dtype == torch.int64


def test_confidence_is_the_softmax_probability():
    scores = torch.tensor([[math.log(3.0), 0.0]] * 2)
    assert_close(confidence(scores, torch.tensor([0, 1])), torch.tensor([0.75, 0.25]))


def test_loss_that_fits_the_data():
    assert loss_for(Mlp(), "classification", 10).name == "cross_entropy"
    assert loss_for(Mlp(), "regression", 1).name == "mse"
    assert loss_for(Svm(), "classification", 2).name == "hinge"
    assert loss_for(Linear(), "regression", 1).name == "mse"
    with pytest.raises(ConfigError, match=r"'svm' trains with hinge, unfit for classification with 10 classes"):
        loss_for(Svm(), "classification", 10)
    with pytest.raises(ConfigError, match="unfit for regression"):
        loss_for(CmpCifarCnn(), "regression", 1)


# --- FlatNetwork -------------------------------------------------------------------------------------------------------


def mlp(loss: Loss = "cross_entropy", inputs: int = 6, classes: int = 3) -> FlatNetwork:
    network = Mlp(hidden=(5,)).build((inputs,), classes).double()
    return FlatNetwork(network, loss)


def samples(n: int, inputs: int = 6, classes: int = 3) -> Samples:
    y = torch.randint(classes, (n,), generator=generator(1, "test"))
    return Samples(normal(n, inputs), y)


def test_vector_and_load_are_inverse():
    flat = mlp()
    theta = normal(flat.dim, seed=3)
    assert flat.dim == 6 * 5 + 5 + 5 * 3 + 3
    flat.load_(theta)
    assert torch.equal(flat.vector(), theta)
    assert torch.equal(torch.cat([p.flatten() for p in flat.network.parameters()]), theta)
    theta.zero_()
    assert flat.vector().abs().sum() > 0, "load_ copies"
    flat.vector().zero_()
    assert flat.vector().abs().sum() > 0, "vector copies"


def test_split_keeps_a_stack_dimension():
    flat = mlp()
    stack = normal(4, flat.dim)
    for row, theta in enumerate(stack):
        for name, part in flat.split(theta).items():
            assert torch.equal(flat.split(stack)[name][row], part)
    assert list(flat.split(stack[0])) == [name for name, _ in flat.network.named_parameters()]
    with pytest.raises(RuntimeError):
        flat.split(stack[0, :-1])


def test_scores_and_losses_are_those_of_the_network_at_that_vector():
    flat, data = mlp(), samples(7)
    before, theta = flat.vector(), normal(flat.dim, seed=5)
    scores, losses = flat.scores(theta, data.x), flat.losses(theta, data)
    assert torch.equal(flat.vector(), before), "the network's own parameters stay"
    with torch.no_grad():
        network = flat.load_(theta)
        assert_close(scores, network(data.x))
        assert_close(losses, nn.functional.cross_entropy(network(data.x), data.y, reduction="none"))
        assert flat.accuracy(theta, data) == float((network(data.x).argmax(1) == data.y).double().mean())
    assert not scores.requires_grad


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "hinge"])
def test_gradient_is_that_of_autograd(loss: Loss):
    flat = mlp(loss, classes=3 if loss == "cross_entropy" else 1)
    data = samples(9, classes=3 if loss == "cross_entropy" else 2)
    if loss == "mse":
        data = Samples(data.x, normal(9, seed=7))
    theta = normal(flat.dim, seed=5)
    gradient = flat.gradient(theta, data)
    network = flat.load_(theta)
    network.zero_grad()
    LOSSES[loss](network(data.x), data.y).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters()])  # type: ignore[union-attr]
    assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not theta.requires_grad
    assert not gradient.requires_grad


def test_gradient_agrees_with_finite_differences():
    flat, data = mlp(), samples(9)
    theta, direction = normal(flat.dim, seed=5), normal(flat.dim, seed=6)
    ahead, behind = (flat.losses(theta + sign * 1e-6 * direction, data).mean() for sign in (1, -1))
    assert_close(flat.gradient(theta, data) @ direction, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_chunks_change_nothing():
    flat, data = mlp(), samples(CHUNK + 3)
    theta = normal(flat.dim, seed=5)
    network = flat.load_(theta)
    with torch.no_grad():
        assert_close(flat.scores(theta, data.x), network(data.x))
    network.zero_grad()
    nn.functional.cross_entropy(network(data.x), data.y).backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters()])  # type: ignore[union-attr]
    assert_close(flat.gradient(theta, data), expected)


@pytest.mark.parametrize("training", [True, False])
def test_eval_mode_is_used_and_left_as_it_was(training: bool):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).double().train(training)
    flat, data = FlatNetwork(network, "cross_entropy"), samples(5)
    theta = flat.vector()
    assert torch.equal(flat.scores(theta, data.x), flat.scores(theta, data.x))
    assert torch.equal(flat.gradient(theta, data), flat.gradient(theta, data))
    assert network.training is training


# --- random numbers ----------------------------------------------------------------------------------------------------


def test_keys_are_golden_and_separate_every_argument():
    """Every figure depends on these keys: they must never change."""
    assert key_of(0, "batches", 3, 7) == 682472274117645573
    keys = [(0, "a", 1, 2), (1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 1), (0, "a", 12), (0, "a", 1), (0, "a")]
    assert len({key_of(*key) for key in keys}) == len(keys)
    assert all(0 <= key_of(seed, "x") < 2**63 for seed in range(100))


def test_generators_are_independent_of_the_global_state():
    torch.manual_seed(1)
    first = torch.rand(3, generator=generator(0, "x"))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(torch.rand(3, generator=generator(0, "x")), first)
    assert torch.equal(torch.get_rng_state(), state)
