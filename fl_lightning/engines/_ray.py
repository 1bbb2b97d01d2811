"""The clients of a round spread over processes, on one machine or on many."""

import heapq
import io
import logging
import math
import os
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from fl_lightning.clients import Client
from fl_lightning.data import Inputs, Named, Samples
from fl_lightning.engines._base import Bench, Engine, Job, LocalRound
from fl_lightning.engines._trainer import Reports, SharedTrainer
from fl_lightning.engines._vectorized import Vectorized
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork
from fl_lightning.parallel import _ray as cluster
from fl_lightning.registry import Slot

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback

PATIENCE_SECONDS = 300.0
"""How long a round waits for a cluster that offers no worker at all."""

LIVES = 4
"""How many workers may be lost over the same clients before it is they who are to blame."""


class Ray(Engine):
    """The clients of a round are spread over Ray workers, each with an engine and a Trainer of its own.

    The same numbers as the engine inside: random numbers are keyed by client, not by worker. Data and broadcast model
    go through Ray's object store once; each worker sends its `[C / workers, D]` updates back once. What a lost worker
    had to train, another one trains again. The cluster is that of `RAY_ADDRESS`, or one of this process alone.

    Attributes:
        workers: processes; `auto`: as many as the cluster has room for when the first round begins.
        cpus_per_worker: processors that a worker reserves, and the threads that it computes with (at least one).
        gpus_per_worker: GPUs that a worker reserves; 0.25 puts four on one GPU, 0 trains on the CPU.
        inside: the engine of each worker, `vectorized` or `sequential`.
    """

    name: ClassVar[str] = "ray"
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    inside: Annotated[Engine, Slot("engine")] = Field(default_factory=Vectorized)

    @field_validator("inside")
    @classmethod
    def _plain(cls, value: Engine) -> Engine:
        if isinstance(value, Ray):
            raise ConfigError("workers train by themselves: use vectorized or sequential, got ray")
        return value

    def check(self) -> None:
        """Refuse to start without the package, or where workers would wait for the processor that their own trial holds."""
        cluster.require()
        if cluster.in_task():
            raise ConfigError("a trial that is a Ray task itself trains by vectorized or sequential, got ray")

    def train(self, bench: Bench, local: LocalRound) -> Tensor:
        """One shard of the clients a worker; see `Engine.train`."""
        start_D, jobs = local.start_D, local.jobs
        updates_CD = start_D.new_empty(len(jobs), len(start_D))
        crew = _crew(self)
        orders = _Orders(_numpy(start_D), local.client, local.round, _packed(local.callbacks()), local.rounds)
        shards = evenly([1 if local.client.steps else len(job.rows) for job in jobs], crew.size)
        reports: dict[int, Reports] = {}
        logged: dict[int, dict[str, float]] = {}

        def take(number: int, answer: "_Answer") -> None:
            updates_CD[shards[number]] = torch.tensor(answer.updates_CD).to(updates_CD)
            reports[number] = answer.reports
            if len(answer.logged) == len(shards[number]):  # one by one, as modules that train themselves are
                logged.update(zip(shards[number], answer.logged, strict=True))
            bench.trainer.watch(len(shards[number]))

        crew.train(bench, orders, [[jobs[i] for i in shard] for shard in shards], take)
        for number in sorted(reports):
            bench.trainer.reports.extend(reports[number])
        bench.trainer.logged.extend(logged[position] for position in sorted(logged))
        return updates_CD


def evenly(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Divide positions into at most `parts` lists of about equal total size; deterministic, no list is empty.

    Example:
        >>> evenly([5, 1, 1, 4, 1], 2)
        [[0, 2], [1, 3, 4]]
    """
    shards: list[list[int]] = [[] for _ in range(min(parts, len(sizes)))]
    loads = [(0, part) for part in range(len(shards))]
    for position in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, part = loads[0]
        shards[part].append(position)
        heapq.heapreplace(loads, (load + sizes[position], part))
    return [sorted(shard) for shard in shards]


class _Orders(NamedTuple):
    """What all workers are told in a round."""

    start_D: "np.ndarray[Any, Any]"
    client: Client
    round: int
    callbacks: bytes
    rounds: int | None


class _Shard(NamedTuple):
    """One worker's clients; references where it may hold, or others share, what they name."""

    bench: Any
    samples: list[Any]
    clients: list[int]
    bases: list[int]
    rows: list["np.ndarray[Any, Any]"]


class _Answer(NamedTuple):
    """What a worker sends back."""

    updates_CD: "np.ndarray[Any, Any]"
    reports: Reports
    logged: list[dict[str, float]]


class _LostError(Exception):
    """A worker, or an object on its machine, is gone."""


class _Worker:
    """A process that trains clients with an engine and a Trainer of its own."""

    def __init__(self, engine: Engine, threads: int):
        import ray

        torch.set_num_threads(threads)
        # The object store gives memory that nobody may write to, and nobody does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self.get = ray.get
        self.engine = engine
        self.bench: tuple[Any, Bench] | None = None

    def ready(self) -> int:
        """Answers as soon as the process is there, with its number."""
        return os.getpid()

    def train(self, orders: _Orders, shard: _Shard) -> _Answer:
        """The updates of a shard."""
        bench = self._bench(shard.bench)
        device = bench.trainer.device

        def here(array: "np.ndarray[Any, Any]") -> Tensor:
            return torch.from_numpy(array).to(device)

        def inputs(arrays: Any) -> Inputs:
            return {name: here(part) for name, part in arrays.items()} if isinstance(arrays, dict) else here(arrays)

        bases = [Samples(inputs(x), here(y)) for x, y in self.get(shard.samples)]
        jobs = [
            Job(client, bases[base], here(rows))
            for client, base, rows in zip(shard.clients, shard.bases, shard.rows, strict=True)
        ]
        watching: list[Callback] = _unpacked(orders.callbacks)
        bench.trainer.reports.clear()
        bench.trainer.logged.clear()
        local = LocalRound(
            here(orders.start_D), jobs, orders.client, orders.round, lambda: deepcopy(watching), orders.rounds
        )
        updates_CD = self.engine.train(bench, local)
        return _Answer(_numpy(updates_CD), list(bench.trainer.reports), list(bench.trainer.logged))

    def _bench(self, reference: Any) -> Bench:
        if self.bench is None or self.bench[0] != reference:
            network, loss, federate, buffers, settings, seed = _unpacked(self.get(reference))
            trainer = SharedTrainer(settings)
            flat = FlatNetwork(network.to(trainer.device), loss, federate, buffers)
            self.bench = reference, Bench(flat, trainer, seed)
        return self.bench[1]


class _Crew:
    """The workers of this process; it stays when rounds, and federations, come and go.

    Args:
        engine: what was asked for.
    """

    def __init__(self, engine: Ray):
        cpus, gpus = engine.cpus_per_worker, engine.gpus_per_worker
        self.ray = cluster.connect(cpus if engine.workers == "auto" else cpus * engine.workers)
        self.place = _place(self.ray)
        if engine.workers == "auto":
            there = self.ray.cluster_resources()
            room = [there.get("CPU", 0) / cpus] + ([there.get("GPU", 0) / gpus] if gpus else [])
            self.size = max(1, int(min(room)))
        else:
            self.size = engine.workers
        make: Any = self.ray.remote(num_cpus=cpus, num_gpus=gpus)(_Worker)
        self.hire: Callable[[], Any] = lambda: make.remote(engine.inside, max(1, math.floor(cpus)))
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.stored: dict[int, tuple[weakref.ref[Any], Any]] = {}
        for _ in range(self.size):
            self._start()

    def _start(self) -> None:
        worker = self.hire()
        self.starting[worker.ready.remote()] = worker

    def _stored(self, thing: Any, value: Callable[[], Any]) -> Any:
        """Where `value()` lies in the object store; it is put there once and stays as long as `thing` lives."""
        key = id(thing)
        if key not in self.stored:
            gone = weakref.ref(thing, lambda _: self.stored.pop(key, None))
            self.stored[key] = gone, self.ray.put(value())
        return self.stored[key][1]

    def _shard(self, bench: Bench, jobs: list[Job]) -> _Shard:
        flat, settings = bench.flat, bench.trainer.settings
        reference = self._stored(
            flat, lambda: _packed((flat.network, flat.chosen_loss, flat.federate, flat.buffers, settings, bench.seed))
        )
        bases = {id(job.samples): job.samples for job in jobs}
        place = {key: position for position, key in enumerate(bases)}
        return _Shard(
            reference,
            [self._stored(base, lambda base=base: (_arrays(base.x), _numpy(base.y))) for base in bases.values()],  # type: ignore[misc]
            [job.client for job in jobs],
            [place[id(job.samples)] for job in jobs],
            [_numpy(job.rows) for job in jobs],
        )

    def train(
        self, bench: Bench, orders: _Orders, shards: list[list[Job]], take: Callable[[int, _Answer], None]
    ) -> None:
        """Have every shard trained by whichever worker is free, again where a worker was lost.

        Args:
            bench: architecture, settings, seed.
            orders: what is the same for all.
            shards: the jobs of each.
            take: called with number and answer of each shard as they arrive.

        Raises:
            RuntimeError: no worker in sight, or the same shard has cost several.
        """
        shared = self.ray.put(orders)
        parts = [self._shard(bench, jobs) for jobs in shards]
        waiting, lost = deque(range(len(shards))), [0] * len(shards)
        busy: dict[Any, tuple[Any, int]] = {}
        try:
            while waiting or busy:
                while waiting and self.idle:
                    worker, number = self.idle.pop(), waiting.popleft()
                    busy[worker.train.remote(shared, parts[number])] = worker, number
                done, _ = self.ray.wait([*busy, *self.starting], timeout=PATIENCE_SECONDS)
                if not done and not busy:
                    raise RuntimeError(f"no worker from the Ray cluster in {PATIENCE_SECONDS:.0f} s; {self._room()}")
                for answer in done:
                    if answer in self.starting:
                        self._welcome(answer)
                        continue
                    worker, number = busy.pop(answer)
                    try:
                        take(number, self._result(worker, answer))
                    except _LostError as error:
                        lost[number] += 1
                        who = parts[number].clients
                        if lost[number] == LIVES:
                            raise RuntimeError(f"{LIVES} workers were lost over the clients {who}") from error
                        _say(f"{len(who)} clients of round {orders.round} are trained again", error)
                        waiting.append(number)
                        self._start()
        finally:  # after an error: who still computes joins when done, and nobody asks for the result
            self.starting |= {answer: worker for answer, (worker, _) in busy.items()}

    def _result(self, worker: Any, answer: Any) -> Any:
        """What a worker answers; it is free again, or it is lost, which is an error of its own."""
        try:
            result = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            failed = isinstance(error, self.ray.exceptions.RayTaskError)
            if failed and not isinstance(error.cause, self.ray.exceptions.RayError):
                self.idle.append(worker)
                raise
            self.ray.kill(worker)
            raise _LostError(f"a worker was lost ({type(error).__name__})") from error
        self.idle.append(worker)
        return result

    def _welcome(self, answer: Any) -> None:
        """A worker that is there joins; one that died before is replaced if it was the only one."""
        try:
            self._result(self.starting.pop(answer), answer)
        except _LostError as error:
            _say("it had not begun", error)
            if not self.idle and not self.starting:
                self._start()
        except Exception:  # an answer that nobody waits for any more
            logging.getLogger("fl_lightning").debug("engine ray: late answer", exc_info=True)

    def _room(self) -> str:
        return f"of {self.ray.cluster_resources()} it has {self.ray.available_resources()} left"


_CREWS: dict[Ray, _Crew] = {}


def _crew(engine: Ray) -> _Crew:
    """The workers of this process; those of another configuration, or of a cluster that is no longer, are dismissed."""
    known = _CREWS.get(engine)
    if known is None or not known.ray.is_initialized() or known.place != _place(known.ray):
        dismiss()
        known = _CREWS[engine] = _Crew(engine)
    return known


def dismiss() -> None:
    """End all workers of this process; the next round starts new ones."""
    while _CREWS:
        _, crew = _CREWS.popitem()
        if crew.ray.is_initialized() and crew.place == _place(crew.ray):
            for worker in [*crew.idle, *crew.starting.values()]:
                crew.ray.kill(worker)


def _place(ray: Any) -> tuple[str, str]:
    """Which connection to which cluster this is."""
    here = ray.get_runtime_context()
    return here.get_node_id(), here.get_job_id()


def _say(what: str, error: Exception) -> None:
    logging.getLogger("fl_lightning").warning("engine ray: %s; %s", error, what)


def _numpy(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """An array: what the object store hands out without a copy."""
    return tensor.detach().cpu().numpy()


def _arrays(x: Inputs) -> Any:
    """One array, or several by name in a plain dictionary."""
    return {name: _numpy(part) for name, part in x.items()} if isinstance(x, Named) else _numpy(x)


def _packed(value: Any) -> bytes:
    """Bytes from which a process without this one's GPU, or its `__main__`, can make the value again."""
    from ray import cloudpickle

    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=cloudpickle)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> Any:
    """What was packed, on the CPU."""
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=False)
