"""Engines: every one equals a loop written by hand in plain PyTorch, and trains every step of every client."""

import gc
import logging
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from torch import Tensor, nn

from fl_lightning.clients import Client, Sgd, batch_plan
from fl_lightning.config import load
from fl_lightning.data import Samples
from fl_lightning.engines import Bench, Engine, Job, LocalRound, Sequential, SharedTrainer, TrainerSettings, Vectorized
from fl_lightning.federation import Federation
from fl_lightning.models import FlatNetwork, draw_masks
from fl_lightning.randomness import generator

SGD = {"name": "sgd", "lr": 0.1}
MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
ADAM = {"name": "adam", "lr": 0.01}
LOCAL: dict[str, Any] = {"batch_size": 16, "epochs": 2}


def fedavg(federation: Federation, rounds: int) -> Tensor:
    """FedAvg as its paper writes it, without Lightning: the reference for all engines."""
    experiment, data = federation.experiment, federation.data.train
    client, network = experiment.client, federation.bench.flat.network
    global_D = federation.initial_D.clone()
    for round in range(rounds):
        updates, sizes = [], []
        for number, index in enumerate(federation.assignment):
            torch.nn.utils.vector_to_parameters(global_D.clone(), network.parameters())
            optimizer = client.optimizer.build(network.parameters())
            plan = batch_plan(len(index), client, generator(experiment.seed, "batches", round, number))
            own = generator(experiment.seed, "local", round, number)
            network.train()
            for step in plan:
                x, y = data.x[index[step]], data.y[index[step]]
                draw_masks(network, len(y), own)
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), y).backward()
                optimizer.step()
            updates.append(torch.nn.utils.parameters_to_vector(network.parameters()).detach() - global_D)
            sizes.append(len(index))
        weights = torch.tensor(sizes, dtype=global_D.dtype)
        global_D = global_D + (weights / weights.sum()) @ torch.stack(updates)
    return global_D


def federation_of(engine: str, model: Any, optimizer: dict[str, Any], precision: Any) -> Federation:
    return Federation(
        load(
            {
                "data": {"name": "mnist", "train_samples": 150, "test_samples": 50},
                "fast": True,
                "rounds": 3,
                "partition": {"name": "dirichlet", "clients": 4, "alpha": 0.7},  # unequal sizes: clients stop early
                "model": model,
                "client": LOCAL | {"optimizer": optimizer},
                "engine": engine,
                "trainer": {"precision": precision, "accelerator": "cpu"},
            }
        )
    )


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("model", ["lenet5", {"name": "mlp", "hidden": [12]}], ids=["lenet5", "mlp"])
@pytest.mark.parametrize(
    ("optimizer", "precision", "tolerance"),
    [
        pytest.param(SGD, 64, 1e-10, id="sgd64"),
        pytest.param(MOMENTUM, 64, 1e-10, id="momentum64", marks=pytest.mark.slow),
        pytest.param(ADAM, 64, 1e-10, id="adam64"),
        pytest.param(SGD, 32, 1e-6, id="sgd32", marks=pytest.mark.slow),
    ],
)
def test_fedavg_equals_a_loop_by_hand(engine: str, model: Any, optimizer: dict[str, Any], precision: int, tolerance):
    federation = federation_of(engine, model, optimizer, precision)
    expected = fedavg(federation, rounds=3)
    assert float((expected - federation.initial_D).abs().max()) > 0.05  # something was learned
    assert float((federation.run().global_D - expected).abs().max()) < tolerance


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_finished_federation_gives_its_data_back_at_once(engine: str):
    federation = federation_of(engine, {"name": "mlp", "hidden": [4]}, SGD, 32)
    federation.round()
    rows = weakref.ref(federation.data.train.x)
    gc.disable()
    try:
        del federation
        assert rows() is None  # nothing that has to be collected keeps hundreds of megabytes alive
    finally:
        gc.enable()


def test_dropout_draws_the_same_masks_in_every_engine():
    model = {"name": "cmp_cifar_cnn"}
    settings = {"data": {"name": "cifar10"}, "rounds": 1, "model": model, "partition": {"name": "iid", "clients": 3}}
    settings |= {"client": {"steps": 2, "batch_size": 8}, "trainer": {"precision": 64, "accelerator": "cpu"}}
    states = [Federation(load(settings | {"fast": True, "engine": e})).run() for e in ("sequential", "vectorized")]
    assert float((states[0].global_D - states[1].global_D).abs().max()) < 1e-10


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("model", ["lenet5", {"name": "mlp", "hidden": [12]}], ids=["lenet5", "mlp"])
def test_bfloat16_products_keep_the_direction_of_training(engine: str, model: Any):
    exact, rounded = (federation_of(engine, model, SGD, precision) for precision in (32, "bf16"))
    moved, close = (own.run().global_D - own.initial_D for own in (exact, rounded))
    assert close.dtype == torch.float32
    assert 0 < float((moved - close).norm() / moved.norm()) < 0.2


class Counter(Callback):
    """Counts optimizer steps."""

    stackable = True
    steps = 0

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        Counter.steps += 1


def bench() -> Bench:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    return Bench(
        FlatNetwork(network, "cross_entropy"), SharedTrainer(TrainerSettings(precision=64, accelerator="cpu")), 5
    )


def jobs_of(sizes: list[int]) -> list[Job]:
    draws = torch.Generator().manual_seed(1)
    total = sum(sizes)
    samples = Samples(torch.randn(total, 6, generator=draws).double(), torch.randint(3, (total,), generator=draws))
    parts = torch.randperm(total, generator=draws).split(sizes)
    return [Job(number, samples, rows) for number, rows in enumerate(parts)]


def test_every_fit_of_the_shared_trainer_does_all_its_steps():
    """A second fit on the same Trainer silently trains nothing unless its progress is reset."""
    own, jobs, client = bench(), jobs_of([40, 25, 8]), Client(batch_size=10, epochs=2)
    start = own.flat.vector()
    for round in range(3):
        Counter.steps = 0
        updates = Sequential().train(own, LocalRound(start, jobs, client, round, lambda: [Counter()]))
        start = start + updates.mean(0)
        assert Counter.steps == 2 * (4 + 3 + 1)
        assert bool((updates.norm(dim=1) > 1e-6).all())
    Vectorized().train(
        own, LocalRound(start, jobs, client, 3, lambda: [Counter()])
    )  # tries once whether they can be stacked
    Counter.steps = 0
    Vectorized(max_clients_in_flight=2).train(own, LocalRound(start, jobs, client, 3, lambda: [Counter()]))
    assert Counter.steps == 2 * 4 + 2 * 1  # two cohorts, each as long as its longest client


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    in_flight=st.integers(1, 6),
    optimizer=st.sampled_from(
        [SGD, MOMENTUM, ADAM, SGD | {"max_grad_norm": 0.3}, ADAM | {"decay": 0.5, "max_grad_norm": 0.1}]
    ),
)
@settings(max_examples=12, deadline=None)
def test_vectorized_equals_sequential(sizes, batch_size, epochs, in_flight, optimizer):
    own, jobs = bench(), jobs_of(sizes)
    client = load(
        {"data": "digits", "client": {"batch_size": batch_size, "epochs": epochs, "optimizer": optimizer}}
    ).client
    start = own.flat.vector()
    engines: list[Engine] = [Sequential(), Vectorized(max_clients_in_flight=in_flight)]
    one, other = (engine.train(own, LocalRound(start, jobs, client, 1)) for engine in engines)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_samples_of_an_attacker_and_of_others_train_in_one_cohort():
    own, jobs = bench(), jobs_of([12, 12])
    poisoned = Samples(jobs[0].samples.x * 2, (jobs[0].samples.y + 1) % 3)
    mixed = [jobs[0], jobs[1]._replace(samples=poisoned)]
    client, start = Client(batch_size=5), own.flat.vector()
    one, other = (engine.train(own, LocalRound(start, mixed, client, 0)) for engine in (Sequential(), Vectorized()))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert float((one - Vectorized().train(own, LocalRound(start, jobs, client, 0))).abs().max()) > 1e-3


def test_the_generator_of_a_client_does_not_depend_on_the_others():
    own, jobs, client = bench(), jobs_of([9, 14, 11]), Client(batch_size=4)
    start = own.flat.vector()
    together = Vectorized().train(own, LocalRound(start, jobs, client, 2))
    alone = Vectorized().train(own, LocalRound(start, jobs[1:2], client, 2))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)


def test_what_cannot_be_stacked_is_trained_one_by_one_and_said_once(caplog: pytest.LogCaptureFixture):
    class Alone(Callback):
        """As any callback of Lightning: it knows nothing of stacked clients, and would clip the sum over all of them."""

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            nn.utils.clip_grad_norm_(module.parameters(), 0.01)

    own, jobs, client = bench(), jobs_of([10, 12]), Client(batch_size=4)
    start = own.flat.vector()
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        one = Vectorized().train(own, LocalRound(start, jobs, client, 0, lambda: [Alone()]))
        Vectorized().train(own, LocalRound(start, jobs, client, 1, lambda: [Alone()]))
    local = LocalRound(start, jobs, client, 0, lambda: [Alone()])
    torch.testing.assert_close(one, Sequential().train(own, local))
    assert [record.message for record in caplog.records if "Alone" in record.message] == [
        "engine vectorized trains these clients one by one: "
        "the callback Alone does not say that it works on stacked clients"
    ]


@pytest.mark.parametrize("engine", [Sequential(), Vectorized()], ids=lambda engine: engine.name)
def test_one_step_is_no_longer_than_the_clipped_gradient_allows(engine: Engine):
    own, jobs = bench(), jobs_of([20, 20])
    start = own.flat.vector()
    free = engine.train(own, LocalRound(start, jobs, Client(steps=1, optimizer=Sgd(lr=0.5)), 0))
    clipped = engine.train(own, LocalRound(start, jobs, Client(steps=1, optimizer=Sgd(lr=0.5, max_grad_norm=0.01)), 0))
    torch.testing.assert_close(clipped.norm(dim=1), torch.full((2,), 0.005, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(free, clipped), torch.ones(2, dtype=torch.float64))
    assert bool((free.norm(dim=1) > 0.02).all())


def test_the_learning_rate_decays_by_communication_rounds():
    own, jobs = bench(), jobs_of([20])
    start = own.flat.vector()
    client = Client(steps=1, batch_size=20, optimizer=Sgd(lr=0.5, decay=0.5))  # one full batch: the same in every round
    first, third = (Vectorized().train(own, LocalRound(start, jobs, client, round)) for round in (0, 2))
    torch.testing.assert_close(third, first / 4)


@pytest.mark.slow
def test_a_thousand_clients_fit_the_budget_in_memory():
    """A round's memory: its [C, D] matrix and the 2 GiB that clients in flight may use, whatever C is."""
    script = """
import resource, torch
from fl_lightning.config import load
from fl_lightning.federation import Federation
settings = {"data": "digits", "rounds": 1, "model": {"name": "mlp", "hidden": [1200]}, "client": {"batch_size": 1},
    "partition": {"name": "iid", "clients": 1000}, "trainer": {"accelerator": "cpu"}, "aggregator": "krum",
    "attack": "label_flip", "participation": {"name": "full", "malicious": 200}}
federation = Federation(load(settings))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
state = federation.run()
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
print(1000 * federation.bench.flat.dim * 4 / 2**30, grown, bool(torch.isfinite(state.global_D).all()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    matrix, grown, finite = done.stdout.split()
    assert finite == "True"
    assert float(matrix) > 0.3
    assert float(grown) < 2 * float(matrix) + 2  # updates, those that the attack replaces, clients in flight
