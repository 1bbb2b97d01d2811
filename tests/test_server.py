"""Server optimizers: golden values, an independent oracle, and what a federation does with them."""

from typing import Any

import pytest
import torch

from fl_lightning.config import load
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.server import ServerOptimizer, server_step

F64 = torch.float64
UPDATES = torch.tensor([[0.5, -1.0, 0.0], [0.5, 1.0, 0.1], [-0.2, 0.3, 0.1]], dtype=F64)


def directions(optimizer: ServerOptimizer, **settings: float) -> list[torch.Tensor]:
    memory: dict[str, torch.Tensor] = {}
    return [server_step(optimizer, update, memory, **settings) for update in UPDATES]


def test_sgd_is_the_update_itself():
    assert all(torch.equal(one, update) for one, update in zip(directions("sgd"), UPDATES, strict=True))


def test_momentum_equals_torch_sgd_with_momentum():
    weight = torch.zeros(3, dtype=F64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.7)
    moved = torch.zeros(3, dtype=F64)
    for update, one in zip(UPDATES, directions("momentum", beta1=0.7), strict=True):
        weight.grad = -update
        optimizer.step()
        moved += one
        torch.testing.assert_close(weight.detach(), moved)


def test_adam_and_yogi_by_hand():
    """Two rounds with beta1 = 0.5, beta2 = 0.75, tau = 0.1: v starts at 0.01."""
    adam = directions("adam", beta1=0.5, beta2=0.75, tau=0.1)
    assert adam[0][0] == pytest.approx(0.25 / ((0.75 * 0.01 + 0.25 * 0.25) ** 0.5 + 0.1))
    v = 0.75 * (0.75 * 0.01 + 0.25 * 0.25) + 0.25 * 0.25
    assert adam[1][0] == pytest.approx((0.5 * 0.25 + 0.5 * 0.5) / (v**0.5 + 0.1))
    yogi = directions("yogi", beta1=0.5, beta2=0.75, tau=0.1)
    assert yogi[0][0] == pytest.approx(0.25 / ((0.01 + 0.25 * 0.25) ** 0.5 + 0.1))  # v < update^2: it grows
    grown = 0.01 + 0.25 * 0.25
    assert yogi[2][0] == pytest.approx(
        (0.5 * 0.375 - 0.5 * 0.2) / ((grown + 0.25 * 0.25 - 0.25 * 0.04) ** 0.5 + 0.1)  # v > update^2: it shrinks
    )


@pytest.mark.parametrize(
    ("server", "better_than"),
    [
        ({"optimizer": "momentum", "lr": 0.5}, 0.5),
        ({"optimizer": "adam", "lr": 0.02}, 0.5),
        ({"optimizer": "yogi", "lr": 0.02}, 0.5),
    ],
    ids=["momentum", "adam", "yogi"],
)
def test_a_federation_learns_and_resumes_exactly(server: dict[str, Any], better_than: float):
    settings = {"data": "digits", "rounds": 12, "partition": {"name": "iid", "clients": 6}, "server": server}
    whole = Federation(load(settings))
    whole.run()
    assert whole.state.history[-1]["global/accuracy"] > better_than
    first, second = Federation(load(settings)), Federation(load(settings))
    for _ in range(5):
        first.round()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.run().global_D, whole.state.global_D)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"server.optimizer.*adamw"):
        load({"data": "digits", "server": {"optimizer": "adamw"}})
    with pytest.raises(ConfigError, match=r"prediction is that of server\.optimizer sgd"):
        load({"data": "digits", "server": {"optimizer": "yogi"}, "evaluation": {"twin": True, "effect": True}})
