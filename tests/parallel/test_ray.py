"""The engine `ray`: the numbers of `sequential`, whatever becomes of the workers."""

import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from fl_lightning.callbacks import CALLBACKS
from fl_lightning.clients import Client
from fl_lightning.config import Experiment, load
from fl_lightning.data import Samples
from fl_lightning.engines import Bench, Job, LocalRound, Ray, Sequential, SharedTrainer, TrainerSettings, _ray
from fl_lightning.engines._ray import evenly
from fl_lightning.errors import ConfigError
from fl_lightning.federation import Federation, FederationState
from fl_lightning.models import FlatNetwork
from fl_lightning.parallel import _ray as cluster

BOTH = {"name": "ray", "workers": 2, "inside": "sequential"}


class Troublemaker(Callback):
    """Ends its process, fails or sleeps, as a file says; the file is there once, or for ever."""

    def __init__(self, path: str = "", what: str = "sleep", ever: bool = False):
        self.path, self.what, self.ever = Path(path), what, ever

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.what == "sleep":
            time.sleep(0.5)
            return
        if not self.path.exists():
            return
        if not self.ever:
            self.path.unlink()
        if self.what == "raise":
            raise ArithmeticError("this client cannot be trained")
        os._exit(1)


@pytest.fixture
def ray(local_ray: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, with a callback that makes trouble."""
    import sys

    monkeypatch.setitem(CALLBACKS, "troublemaker", Troublemaker)
    local_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return local_ray


def same(one: FederationState, other: FederationState) -> None:
    """Equal to the last bit, but for the times."""
    assert torch.equal(one.global_D, other.global_D)
    figures = [
        [{name: value for name, value in row.items() if not name.startswith("time/")} for row in state.history]
        for state in (one, other)
    ]
    assert figures[0] == figures[1]


def small_bench() -> tuple[Bench, list[Job]]:
    draws = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    own = Bench(FlatNetwork(network, "cross_entropy"), SharedTrainer(TrainerSettings(accelerator="cpu")), 5)
    samples = Samples(torch.randn(60, 6, generator=draws), torch.randint(3, (60,), generator=draws))
    return own, [Job(i, samples, rows) for i, rows in enumerate(torch.arange(60).split([9, 20, 11, 15, 5]))]


def test_shards_are_even_whole_and_in_order():
    sizes = [7, 1, 3, 3, 9, 2, 2, 2]
    shards = evenly(sizes, 3)
    assert sorted(i for shard in shards for i in shard) == list(range(8))
    assert all(shard == sorted(shard) for shard in shards)
    loads = [sum(sizes[i] for i in shard) for shard in shards]
    assert max(loads) - min(loads) <= 2
    assert evenly([1, 1], 5) == [[0], [1]]
    assert evenly([], 2) == []


def test_it_says_what_is_missing_and_what_cannot_be(tiny, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"engine\.inside: workers train by themselves"):
        tiny(engine={"name": "ray", "inside": "ray"})
    experiment = tiny(engine="ray")  # a configuration can be read without Ray
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine: needs the package ray: pip install 'fl-lightning\[ray\]'"):
        Federation(experiment)


def test_nobody_at_the_address_is_bad_input(local_ray: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_ray, "is_initialized", lambda: False)  # whatever another test has left
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no Ray cluster at RAY_ADDRESS=127\.0\.0\.1:1"):
        cluster.connect()


def test_rounds_on_ray_equal_sequential_to_the_last_bit(tiny, ray: Any, tmp_path: Path):
    """Benign and poisoned clients, with a callback that draws random numbers and reports."""
    attacked = {
        "attack": {"name": "model_replacement", "objective": {"name": "trigger", "label": 0}},
        "client": {"batch_size": 16, "callbacks": {"wbc": {"name": "fl_wbc", "std": 0.4}}},
        "evaluation": {"twin": True},
    }
    one, other = (Federation(tiny(**attacked, engine=engine)).run() for engine in ("sequential", BOTH))
    assert "client/wbc/density" in one.history[0]
    same(one, other)
    own, jobs = small_bench()
    start, flag = own.flat.vector(), tmp_path / "flag"
    engine = Ray(workers=2, inside=Sequential())
    for broken in (
        True,
        False,
    ):  # the error of a client is the error of the round, and the next round is none the worse
        flag.touch() if broken else None
        if broken:
            with pytest.raises(ArithmeticError, match="cannot be trained"):
                engine.train(own, LocalRound(start, jobs, Client(), 0, lambda: [Troublemaker(str(flag), "raise")]))
    expected = Sequential().train(own, LocalRound(start, jobs, Client(batch_size=4), 1))
    assert torch.equal(engine.train(own, LocalRound(start, jobs, Client(batch_size=4), 1)), expected)
    assert engine.train(own, LocalRound(start, [], Client(), 1)).shape == (0, len(start))


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing_and_clients_that_kill_are_named(ray: Any, tmp_path: Path):
    own, jobs = small_bench()
    start, flag, engine = own.flat.vector(), tmp_path / "flag", Ray(workers=2, inside=Sequential())

    def deadly(ever: bool) -> Any:
        return lambda: [Troublemaker(str(flag), "die", ever)]

    expected = Sequential().train(own, LocalRound(start, jobs, Client(), 0, lambda: [Troublemaker()]))
    flag.touch()
    assert torch.equal(engine.train(own, LocalRound(start, jobs, Client(), 0, deadly(ever=False))), expected)
    assert not flag.exists(), "nobody died"
    flag.touch()
    with pytest.raises(RuntimeError, match=r"workers were lost over the clients \[\d"):
        engine.train(own, LocalRound(start, jobs, Client(), 0, deadly(ever=True)))
    flag.unlink()
    assert torch.equal(engine.train(own, LocalRound(start, jobs, Client(), 0, deadly(ever=True))), expected)


@pytest.fixture
def two_nodes(ray: Any) -> Iterator[Any]:
    """A cluster of two nodes with one processor each, and this process connected to it."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.second = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    _ray.dismiss()
    ray.shutdown()
    nodes.shutdown()


def sleepy(tiny: Any, engine: Any) -> Experiment:
    """Twelve clients that take half a second each."""
    local = {"batch_size": 16, "callbacks": {"slow": {"name": "troublemaker"}}}
    experiment: Experiment = tiny(
        attack="sign_flip", client=local, partition={"name": "iid", "clients": 12}, engine=engine
    )
    return experiment


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_give_the_same_figures_and_one_may_vanish_in_the_middle_of_a_round(
    tiny, ray: Any, two_nodes: Any, caplog: pytest.LogCaptureFixture
):
    expected = Federation(sleepy(tiny, "sequential")).run()
    federation = Federation(sleepy(tiny, BOTH))
    federation.round()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray.available_resources().get("CPU", 0) == 0, "both nodes have a worker"
    # the node dies while its worker trains: six clients take three seconds
    axe = threading.Timer(1.0, two_nodes.remove_node, [two_nodes.second], {"allow_graceful": False})
    axe.start()
    federation.round()
    axe.join()
    assert "6 clients of round 1 are trained again" in caplog.text
    same(federation.run(), expected)


def memory_of(pid: int) -> int:
    """Resident bytes of a process that it does not share."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_rounds_leave_nothing_behind(ray: Any):
    """An update matrix of 16 MB a round, and the attackers' own data: what is kept of each round would show."""
    from ray._private.internal_api import memory_summary

    settings = {
        "data": {"name": "digits", "train_samples": 200, "test_samples": 50},
        "rounds": 110,
        "partition": {"name": "iid", "clients": 20},
        "model": {"name": "mlp", "hidden": [2700]},
        "client": {"steps": 1, "batch_size": 4},
        "participation": {"name": "full", "malicious": 4},
        "attack": "label_flip",
        "evaluation": {"every": 50},
        "engine": {"name": "ray", "workers": 2},
    }
    federation = Federation(load(settings))
    matrix = 20 * federation.bench.flat.dim * 4
    assert matrix > 15e6
    measured = []
    for round in range(110):
        federation.round()
        if round in (9, 109):
            (crew,) = _ray._CREWS.values()
            pids = [os.getpid(), *ray.get([worker.ready.remote() for worker in crew.idle])]
            stats = memory_summary(stats_only=True)
            store = float(re.search(r"Plasma memory usage ([\d.]+) MiB", stats)[1]) * 2**20  # type: ignore[index]
            measured.append([store, *map(memory_of, pids)])
            stored = len(crew.stored)
    grown = [after - before for before, after in zip(*measured, strict=True)]
    print("grown by", [f"{one / 2**20:.1f} MiB" for one in grown], "over 100 rounds of", f"{matrix / 2**20:.1f} MiB")
    assert stored == 2  # the architecture and the training data
    assert max(grown) < 3 * matrix
