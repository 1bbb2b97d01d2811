"""Schedulers: golden factors, the same updates in every engine, and a plain loop of torch as the oracle."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch.testing import assert_close

from fl_lightning import Federation
from fl_lightning.clients import Client, Cosine, Milestones, Scheduler, Sgd, Warmup
from fl_lightning.engines import LocalRound, Sequential, Vectorized
from fl_lightning.errors import ConfigError
from fl_lightning.registry import registry


class Halving(Scheduler):
    """One of a user's own."""

    name: ClassVar[str] = "halving"

    def factor(self, done: float) -> float:
        return 0.5**done


@pytest.mark.parametrize(
    ("scheduler", "factors"),
    [
        (Cosine(), [1.0, 0.5, 0.0]),
        (Cosine(floor=0.2), [1.0, 0.6, 0.2]),
        (Milestones(), [1.0, 0.1, 0.01]),
        (Milestones(at=(0.5, 0.5), gamma=0.5), [1.0, 0.25, 0.25]),
        (Warmup(share=1.0, start=0.5), [0.5, 0.75, 1.0]),
        (Warmup(), [0.1, 1.0, 1.0]),
    ],
)
def test_factors_worked_by_hand(scheduler, factors):
    assert [scheduler.factor(done) for done in (0.0, 0.5, 1.0)] == pytest.approx(factors)


def test_the_slot_is_open():
    assert {"cosine", "milestones", "warmup"} <= set(registry("scheduler").names())
    own = f"{Halving.__module__}:Halving"
    assert registry("scheduler").build({"name": own, "per": "round"}).factor(1.0) == 0.5
    assert registry("scheduler").build("cosine") == Cosine()


def test_over_the_run_the_rounds_count():
    client = Client(optimizer=Sgd(lr=2.0, decay=0.5), scheduler=Cosine())
    assert client.optimizer_at(2, 4).lr == pytest.approx(2.0 * 0.5**2 * 0.5)
    assert client.factor_at(10) is None
    assert Client().to_dict() == Client(scheduler=None).to_dict()
    assert "scheduler" not in Client().to_dict()


def test_steps_of_a_round_follow_the_factor_in_every_engine(tiny):
    federation = Federation(tiny(trainer={"precision": 64}, rounds=2))
    client = Client(batch_size=8, steps=4, optimizer=Sgd(lr=0.5, momentum=0.9), scheduler=Cosine(per="round"))
    jobs = federation.jobs(federation.cohort())
    local = LocalRound(federation.initial_D, jobs, client, 0)
    one, other = (engine.train(federation.bench, local) for engine in (Sequential(), Vectorized()))
    assert_close(one, other, rtol=0, atol=1e-10)
    flat = federation.bench.flat
    theta_D, moment_D = federation.initial_D, torch.zeros_like(federation.initial_D)
    for step, rows in enumerate(federation.bench.plan(jobs[0], client, 0)):
        moment_D = 0.9 * moment_D + flat.gradient(theta_D, jobs[0].samples[rows])
        theta_D = theta_D - 0.5 * Cosine().factor(step / 4) * moment_D
    assert_close(theta_D - federation.initial_D, one[0], rtol=0, atol=1e-10)
    constant = Sequential().train(federation.bench, replace(local, client=replace(client, scheduler=None)))
    assert float((constant - one).abs().max()) > 1e-3


def test_clients_with_other_numbers_of_steps_train_one_by_one(tiny, caplog):
    federation = Federation(tiny(trainer={"precision": 64}))
    client = Client(batch_size=8, optimizer=Sgd(lr=0.5), scheduler=Warmup(per="round"))
    jobs = federation.jobs(federation.cohort())
    uneven = [jobs[0], jobs[1]._replace(rows=jobs[1].rows[:9])]
    local = LocalRound(federation.initial_D, uneven, client, 0)
    assert torch.equal(Vectorized().train(federation.bench, local), Sequential().train(federation.bench, local))
    assert "learning rates follow their steps" in caplog.text


def test_a_run_whose_learning_rate_is_down_to_nothing_stands_still(tiny):
    federation = Federation(tiny(rounds=2, client={"scheduler": {"name": "milestones", "at": [0.5], "gamma": 1e-30}}))
    federation.round()
    moved_D = federation.state.global_D
    federation.round()
    assert not torch.equal(moved_D, federation.initial_D)
    assert torch.equal(federation.state.global_D, moved_D)


def test_what_cannot_be_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"client\.scheduler"):
        tiny(client={"scheduler": "cosinus"})
    with pytest.raises(ConfigError, match="per to run"):
        tiny(client={"scheduler": {"name": "cosine", "per": "round"}}, evaluation={"twin": True, "effect": True})
