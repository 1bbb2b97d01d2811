"""The curvature-weighted penalty: its diagonals against closed forms and oracles, and the callback in both engines."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from fl_lightning.callbacks import HessianRegularizer
from fl_lightning.callbacks.hessian import fisher_diagonal, ggn_diagonal, hutchinson_diagonal, normalised
from fl_lightning.clients import CallbackConfig
from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation


@pytest.fixture
def softmax_regression():
    weight = torch.tensor([[0.2, -0.1], [0.0, 0.3]], requires_grad=True)
    x, y = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([0, 1])
    return weight, x, y


def network(*extra: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 5), *extra, nn.ReLU(), nn.Linear(5, 3)).double()
        return layers, torch.randn(6, 4).double(), torch.randint(3, (6,))


def equal(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.tensor(1 / len(x)).to(x)] * len(x)


def exact_diagonal(layers: nn.Module, x: torch.Tensor, loss) -> list[torch.Tensor]:
    parameters = dict(layers.named_parameters())
    blocks = jacrev(jacrev(lambda p: loss(functional_call(layers, p, (x,)))))(parameters)
    return [blocks[n][n].detach().reshape(p.numel(), p.numel()).diagonal().view_as(p) for n, p in parameters.items()]


def test_golden_softmax_regression(softmax_regression):
    weight, x, y = softmax_regression
    exact = torch.tensor([[0.1437676, 0.5750704], [0.1437676, 0.5750704]])
    assert_close(ggn_diagonal(x @ weight.T, [weight], equal(x))[0], exact, atol=1e-6, rtol=0)
    losses = F.cross_entropy(x @ weight.T, y, reduction="none")
    fisher = torch.tensor([[0.2568680, 1.0274720], [0.2568680, 1.0274719]])
    assert_close(fisher_diagonal(losses, [weight], equal(x))[0], fisher, atol=1e-6, rtol=0)


def test_ggn_is_the_exact_diagonal_of_a_relu_network_only():
    layers, x, y = network()
    ours = ggn_diagonal(layers(x), list(layers.parameters()), equal(x))
    assert_close(ours, exact_diagonal(layers, x, lambda s: F.cross_entropy(s, y)))
    assert all((part >= 0).all() for part in ours)
    layers, x, y = network(nn.GroupNorm(1, 5))
    exact = exact_diagonal(layers, x, lambda s: F.cross_entropy(s, y))
    assert min(float(part.min()) for part in exact) < -1e-4


def test_ggn_of_a_regression():
    layers, x, _ = network()
    layers = nn.Sequential(layers, nn.Linear(3, 1).double())
    y = x[:, 0]
    ours = ggn_diagonal(layers(x), list(layers.parameters()), equal(x), regression=True)
    assert_close(ours, exact_diagonal(layers, x, lambda s: (s.squeeze(-1) - y).square().mean()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_against_curvlinops():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
    layers, x, y = network(nn.GroupNorm(1, 5))
    parameters = list(layers.parameters())
    operator = curvlinops.GGNLinearOperator(
        layers, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
    )
    dense = operator @ torch.eye(operator.shape[1]).double()
    ours = torch.cat([part.flatten() for part in ggn_diagonal(layers(x), parameters, equal(x))])
    assert_close(ours, dense.diagonal())


def test_hutchinson_over_all_sign_vectors_is_exact():
    layers, x, y = network()
    last = layers[2].bias
    signs = [[torch.tensor(v).double()] for v in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).tolist()]
    ours = hutchinson_diagonal(F.cross_entropy(layers(x), y), [last], signs)
    assert_close(ours[0], exact_diagonal(layers, x, lambda s: F.cross_entropy(s, y))[3])


def test_normalised_has_mean_one_and_survives_zero():
    parts = normalised([torch.tensor([[4.0, -3.0]]), torch.tensor([2.0, 0.0])])
    assert float(torch.cat([part.flatten() for part in parts]).mean()) == 1
    assert_close(normalised([torch.zeros(2), -torch.ones(1)]), [torch.zeros(2), torch.zeros(1)])
    rows = normalised([torch.tensor([[1.0, 3.0], [0.0, 0.0]])], rows=2)
    assert_close(rows, [torch.tensor([[0.5, 1.5], [0.0, 0.0]])])


def trained(engine: str, callback: dict, rounds: int = 2, model: object = "mlp", data: object = "digits"):
    federation = Federation(
        load(
            {
                "data": data,
                "rounds": rounds,
                "partition": {"name": "degree", "clients": 4, "p": 0.5, "samples_per_client": 25},
                "model": model,
                "client": {"batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.1}, "callbacks": callback},
                "engine": engine,
                "trainer": {"accelerator": "cpu", "precision": 64},
            }
        )
    )
    start_D = federation.state.global_D
    return federation.run().global_D - start_D


@pytest.mark.parametrize("h", ["ggn", "fisher", "hutchinson"])
def test_stacked_clients_get_the_same_numbers(h):
    callback = {"pull": {"name": "hessian_regularizer", "rho": 0.3, "h": h, "probes": 2}}
    model = {"name": "mlp", "hidden": [6]}
    alone = trained("sequential", callback, model=model)
    assert_close(alone, trained("vectorized", callback, model=model), atol=1e-10, rtol=0)
    assert float((alone - trained("vectorized", {}, model=model)).norm()) > 1e-3


def test_dropout_is_off_while_the_curvature_is_estimated():
    callback = {"pull": {"name": "hessian_regularizer", "rho": 0.3, "h": "fisher"}}
    model = {"name": "cmp_cifar_cnn"}
    data = {"name": "digits", "train_samples": 100, "test_samples": 20}
    alone = trained("sequential", callback, 1, model, data)
    assert_close(alone, trained("vectorized", callback, 1, model, data), atol=1e-10, rtol=0)


def test_strength_zero_changes_no_bit_and_large_strength_holds_the_curved_directions():
    model = {"name": "mlp", "hidden": [6]}
    free = trained("sequential", {}, 1, model)
    none = trained("sequential", {"pull": {"name": "hessian_regularizer", "rho": 0.0}}, 1, model)
    assert torch.equal(free, none)
    weak, strong = (
        trained("sequential", {"pull": {"name": "hessian_regularizer", "rho": rho}}, 1, model).norm()
        for rho in (0.01, 0.3)
    )
    assert strong < weak < free.norm()


def test_a_given_curvature_is_shared_by_all_clients():
    layers = nn.Linear(2, 2)
    layers.n_stacked = 1
    callback = HessianRegularizer(rho=1.0, curvature=torch.tensor([1.0, 1, 1, 1, 0, 0]))
    callback.on_train_start(None, layers)
    callback.on_train_batch_start(None, layers, None, 0)
    before = [p.detach().clone() for p in layers.parameters()]
    for p in layers.parameters():
        p.grad = torch.zeros_like(p)
        p.data += 1
    callback.on_before_optimizer_step(None, layers, None)
    assert_close(layers.weight.grad, torch.full((2, 2), 3.0))  # 2 rho h / mean(h) = 2 * 6 / 4
    assert_close(layers.bias.grad, torch.zeros(2))
    assert_close(before[0] + 1, layers.weight.detach())
    bad = HessianRegularizer(rho=1.0, curvature=torch.ones(3))
    bad.on_train_start(None, layers)
    with pytest.raises(ValueError, match="6 entries, one a parameter, got 3"):
        bad.on_train_batch_start(None, layers, None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rho": -1}, "at least 0, got -1"), ({"rho": 1, "h": "exact"}, "ggn, fisher, hutchinson, got 'exact'")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CallbackConfig("hessian_regularizer", **options)
