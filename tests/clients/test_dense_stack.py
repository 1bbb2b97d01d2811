"""DenseStack: equals each client's own network, and folded gradient descent equals torch's SGD."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fl_lightning.clients import DenseStack
from fl_lightning.models import KeyedDropout, Lenet5, Mlp


def stack_of(networks: list[nn.Module]) -> dict[str, Tensor]:
    named = [dict(network.named_parameters()) for network in networks]
    return {name: torch.stack([own[name].detach() for own in named]).requires_grad_() for name in named[0]}


@given(
    clients=st.integers(1, 4),
    batch=st.integers(1, 5),
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    folded=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_a_step_equals_every_clients_own(clients: int, batch: int, widths: list[int], folded: bool, seed: int):
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.Tanh()]
    networks = [copy.deepcopy(nn.Sequential(*layers)).double() for _ in range(clients)]
    for network in networks:
        for own in network.parameters():
            nn.init.normal_(own)
    stack = stack_of(networks)
    x = torch.randn(clients, batch, 1, widths[0], dtype=torch.float64)
    scores = DenseStack(nn.Sequential(*layers), lr=0.3 if folded else None)(stack, x)
    scores.square().sum().backward()
    torch.optim.SGD(stack.values(), lr=0.3).step()
    for c, network in enumerate(networks):
        expected = network(x[c])
        torch.testing.assert_close(scores[c], expected, rtol=0, atol=1e-12)
        expected.square().sum().backward()
        torch.optim.SGD(network.parameters(), lr=0.3).step()
        for name, own in network.named_parameters():
            torch.testing.assert_close(stack[name][c], own, rtol=1e-11, atol=1e-12)


def test_folded_weights_hold_no_gradient():
    network = Mlp(hidden=(3,)).build((2, 2), 2)
    stack = stack_of([network, network])
    DenseStack(network, lr=0.1)(stack, torch.ones(2, 5, 2, 2)).sum().backward()
    assert [name for name, part in stack.items() if part.grad is None] == ["1.weight", "3.weight"]


TIED = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "network",
    [
        Lenet5().build((1, 28, 28), 10),
        nn.Sequential(nn.Linear(2, 2, bias=False)),
        nn.Sequential(TIED, nn.ReLU(), TIED),
        nn.Sequential(KeyedDropout(0.5, (2,)), nn.Linear(2, 2)),
        nn.Sequential(nn.Flatten(2), nn.Linear(2, 2)),
        nn.Linear(2, 2),
    ],
    ids=["convolution", "no bias", "tied", "dropout", "partly flat", "bare"],
)
def test_other_networks_are_refused(network: Any):
    assert not DenseStack.fits(network)
    with pytest.raises(ValueError, match="chain of dense"):
        DenseStack(network)
