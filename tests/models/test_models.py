"""The papers' architectures: parameter counts, shapes, layer order, and the same numbers for stacked clients."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from fl_lightning.errors import ConfigError
from fl_lightning.models import KeyedDropout, Lenet5, Linear, Mlp, Svm, WbcCifarCnn, draw_masks, sample_masks
from fl_lightning.registry import registry

MNIST, CIFAR, HOUSES = (1, 28, 28), (3, 32, 32), (274,)

COUNTS = {
    ("linear", HOUSES, 1): 275,
    ("linear", MNIST, 10): 7_850,
    ("svm", MNIST, 2): 785,
    ("mlp", MNIST, 10): 101_770,
    ("mlp", HOUSES, 1): 274 * 128 + 128 + 129,
    ("lenet5", MNIST, 10): 61_706,
    ("lenet5", CIFAR, 10): 83_126,
    ("wbc_fmnist_cnn", MNIST, 10): 28_938,
    ("wbc_cifar_cnn", CIFAR, 10): 62_006,
    ("cmp_cifar_cnn", CIFAR, 10): 545_098,
    ("multi_party_cnn", MNIST, 10): 1_663_370,
    ("pdrr_cnn", MNIST, 62): 6_603_710,
    ("resnet18", CIFAR, 10): 11_173_962,
    ("pdrr_cnn", MNIST, 10): 832 + 51_264 + 6_424_576 + 20_490,
}
SMALLEST = {
    "lenet5": 12,
    "wbc_fmnist_cnn": 4,
    "wbc_cifar_cnn": 13,
    "cmp_cifar_cnn": 4,
    "multi_party_cnn": 4,
    "pdrr_cnn": 4,
}


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(model, shape, classes: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model.build(shape, classes)


@pytest.mark.parametrize(("name", "shape", "classes"), COUNTS)
def test_parameter_count_and_output_shape(name, shape, classes):
    network = registry("model").build(name).build(shape, classes).eval()
    assert count(network) == COUNTS[name, shape, classes]
    outputs = network(images(3, *shape))
    assert outputs.shape == (3, 1 if name == "svm" else classes)
    assert outputs.isfinite().all()


def test_every_architecture_has_a_counted_case():
    assert {name for name, _, _ in COUNTS} >= {"linear", "svm", "mlp", *SMALLEST}
    pdrr = registry("model").build("pdrr_cnn").build(MNIST, 62)
    layers = [count(layer) for layer in pdrr if count(layer)]
    assert layers == [832, 51_264, 6_424_576, 127_038]


def configurations():
    folder = Path(__file__).parents[2] / "configs" / "model"
    return sorted(path.stem for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", configurations())
def test_configuration_round_trips(name):
    model = registry("model").build(name)
    assert registry("model").build(model.to_dict()) == model
    assert registry("model").build(yaml.safe_load(yaml.safe_dump(model.to_dict()))) == model


def test_losses_say_what_a_model_can_be_trained_with():
    assert Linear.losses == ("mse", "cross_entropy")
    assert Svm.losses == ("hinge",)
    assert Lenet5.losses == ("cross_entropy",)


def test_mlp_widths():
    assert count(Mlp(hidden=()).build(MNIST, 10)) == 7_850
    assert count(Mlp(hidden=[64, 32]).build((4,), 3)) == 4 * 64 + 64 + 64 * 32 + 32 + 32 * 3 + 3
    with pytest.raises(ConfigError, match=r"hidden\.1: .*greater than 0, got 0"):
        registry("model").build({"name": "mlp", "hidden": [8, 0]})


def test_lenet5_is_convolution_relu_pool_twice_then_three_dense_layers():
    network = seeded(Lenet5(), MNIST, 10)
    conv1, bias1, conv2, bias2, a, a0, b, b0, c, c0 = network.parameters()
    x = images(4, *MNIST)
    hidden = F.max_pool2d(F.conv2d(x, conv1, bias1, padding=2).relu(), 2)
    hidden = F.max_pool2d(F.conv2d(hidden, conv2, bias2).relu(), 2)
    expected = F.linear(F.linear(F.linear(hidden.flatten(1), a, a0).relu(), b, b0).relu(), c, c0)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_wbc_cifar_pools_three_by_three_to_400_features():
    network = seeded(WbcCifarCnn(), CIFAR, 10)
    pools = [layer for layer in network if isinstance(layer, nn.MaxPool2d)]
    assert [pool.kernel_size for pool in pools] == [3, 3]
    assert network[:7](images(2, *CIFAR)).shape == (2, 400)


def test_svm_needs_two_classes():
    with pytest.raises(ConfigError, match="exactly 2 classes, got 10"):
        Svm().build(MNIST, 10)


@pytest.mark.parametrize("name", SMALLEST)
def test_convolutions_refuse_what_is_no_image_or_too_small(name):
    model, smallest = registry("model").build(name), SMALLEST[name]
    model.build((1, smallest, smallest), 10).eval()(images(2, 1, smallest, smallest))
    with pytest.raises(ConfigError, match=f"{smallest - 1} x {smallest} pixels are too small"):
        model.build((1, smallest - 1, smallest), 10)
    with pytest.raises(ConfigError, match=r"channels, height, width\), got inputs of shape \(64,\)"):
        model.build((64,), 10)


def test_dropout_probability_is_checked():
    with pytest.raises(ConfigError, match=r"dropout: .*less than 1, got 1"):
        registry("model").build({"name": "cmp_cifar_cnn", "dropout": 1.0})
    with pytest.raises(ValueError, match=r"0 <= p < 1, got p=1\.5"):
        KeyedDropout(1.5, (3,))


STACKED = [key for key in COUNTS if COUNTS[key] < 600_000]


@pytest.mark.parametrize(("name", "shape", "classes"), STACKED)
def test_stacked_clients_train_as_each_alone(name, shape, classes):
    """Gradients of clients under vmap equal each client's own by plain autograd, dropout masks included."""
    clients, batch, rows = 3, 5, 4  # the last batch of an epoch is smaller than the masks
    model = registry("model").build(name)
    networks = [seeded(model, shape, classes, seed=client).double() for client in range(clients)]
    x = images(clients, rows, *shape).double()

    alone = []
    for client, network in enumerate(networks):
        draw_masks(network, batch, torch.Generator().manual_seed(client))
        network(x[client]).square().sum().backward()
        alone.append({key: weight.grad for key, weight in network.named_parameters()})

    masks = [sample_masks(networks[0], batch, torch.Generator().manual_seed(client)) for client in range(clients)]
    buffers = {key: torch.stack([one[key] for one in masks]) for key in masks[0]}
    parameters, _ = stack_module_state(networks)
    template = networks[0]

    def loss(weights, held, inputs):
        return functional_call(template, (weights, held), (inputs,)).square().sum()

    stacked = vmap(grad(loss))({key: value.detach() for key, value in parameters.items()}, buffers, x)
    for key, value in stacked.items():
        for client in range(clients):
            torch.testing.assert_close(value[client], alone[client][key], rtol=1e-9, atol=1e-9)


def test_dropout_keeps_the_mean_and_drops_the_share():
    dropout = KeyedDropout(0.25, (1000,))
    draw_masks(dropout, 100, torch.Generator().manual_seed(0))
    y = dropout(torch.ones(100, 1000))
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert len(y.unique(dim=0)) == 100  # every sample has its own mask


def test_dropout_masks_every_module_in_order():
    network = nn.Sequential(KeyedDropout(0.5, (6,)), nn.Linear(6, 8), KeyedDropout(0.3, (8,)))
    draw_masks(network, 4, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    first, second = network[0].sample(4, generator), network[2].sample(4, generator)
    assert torch.equal(network[0].mask, first)
    assert torch.equal(network[2].mask, second)
    assert list(sample_masks(network, 4, generator)) == ["0.mask", "2.mask"]
    assert torch.equal(network[0](torch.ones(3, 6)), first[:3])


@pytest.mark.parametrize("rows", [1, 3, 17, 100])
def test_dropout_mask_of_a_row_does_not_depend_on_the_batch_size(rows):
    dropout = KeyedDropout(0.5, (5,))
    short, full = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for _ in range(3):
        assert torch.equal(dropout.sample(rows, short), dropout.sample(128, full)[:rows])


def test_dropout_masks_do_not_depend_on_precision():
    network = registry("model").build("cmp_cifar_cnn").build(CIFAR, 10)
    single = sample_masks(network, 8, torch.Generator().manual_seed(1))
    double = sample_masks(network.double(), 8, torch.Generator().manual_seed(1))
    for key, mask in double.items():
        assert mask.dtype == torch.float64
        assert torch.equal(mask == 0, single[key] == 0)


def test_dropout_without_masks_says_what_to_do():
    dropout = KeyedDropout(0.5, (3,))
    with pytest.raises(RuntimeError, match="masks for 0 samples, the batch has 2: call draw_masks"):
        dropout(torch.ones(2, 3))
    draw_masks(dropout, 4, torch.Generator())
    with pytest.raises(RuntimeError, match="masks for 4 samples, the batch has 5"):
        dropout(torch.ones(5, 3))
    assert dropout(torch.ones(2, 3)).shape == (2, 3)


def test_dropout_is_the_identity_when_evaluated_or_zero():
    x = torch.ones(2, 3)
    assert KeyedDropout(0.5, (3,)).eval()(x) is x
    assert KeyedDropout(0.0, (3,))(x) is x
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    draw_masks(nn.Sequential(nn.Linear(3, 3), KeyedDropout(0.0, (3,))), 4, generator)
    assert torch.equal(generator.get_state(), state)


def test_dropout_masks_are_no_part_of_the_model():
    network = registry("model").build("cmp_cifar_cnn").build(CIFAR, 10)
    draw_masks(network, 2, torch.Generator())
    assert not [key for key in network.state_dict() if "mask" in key]
    x = images(2, *CIFAR)
    for same in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(same(x), network(x))
