"""What becomes of the last batch of an epoch."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from fl_lightning.clients import Client, batch_plan
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation
from fl_lightning.models import Model


class Normalised(Model):
    """A dense layer behind batch normalisation."""

    name: ClassVar[str] = "normalised"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, classes))


@pytest.mark.parametrize(
    ("n", "last", "sizes"),
    [
        (17, "keep", [8, 8, 1]),
        (17, "drop", [8, 8]),
        (17, "merge", [8, 9]),
        (16, "drop", [8, 8]),
        (5, "drop", [5]),
        (9, "merge", [9]),
    ],
)
def test_the_last_batch(n: int, last: Any, sizes: list[int]):
    plan = batch_plan(n, Client(batch_size=8, last_batch=last), torch.Generator().manual_seed(0))
    assert [len(step) for step in plan] == sizes
    assert len(torch.cat(plan).unique()) == sum(sizes)
    assert len(batch_plan(n, Client(batch_size=8, last_batch=last, steps=4), torch.Generator())) == 4


def test_a_batch_of_one_is_refused_before_training_where_it_cannot_work(tiny: Callable[..., Any]):
    slots = {"model": Normalised(), "partition": {"name": "iid", "clients": 5, "samples_per_client": 17}}
    with pytest.raises(ConfigError, match=r"client.last_batch: client 0 has 17 samples, so a batch of one"):
        Federation(tiny(client={"batch_size": 16}, **slots))
    for last in ("drop", "merge"):
        Federation(tiny(client={"batch_size": 16, "last_batch": last}, rounds=1, **slots)).run()
    Federation(tiny(client={"batch_size": 16}, partition=slots["partition"], rounds=1)).run()
