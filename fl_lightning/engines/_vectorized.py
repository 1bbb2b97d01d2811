"""All clients of a round in lock step: one fit of a stacked module instead of one fit a client."""

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from fl_lightning import clients
from fl_lightning.clients import Client
from fl_lightning.data import Samples
from fl_lightning.engines._base import Bench, Engine, Job, LocalRound
from fl_lightning.engines._probe import unstackable
from fl_lightning.engines._sequential import Sequential
from fl_lightning.models import FlatNetwork

CPU_BUDGET = 2 * 2**30
GPU_SHARE = 0.4
CPU_CONVOLUTIONS = 8


class Vectorized(Engine):
    """All clients of a round train in lock step, in one fit of a `ClientCohort`; the same numbers as `sequential`.

    Clients that cannot be stacked (a callback that does not declare `stackable = True`, an optimizer that is not elementwise,
    layers that draw random numbers, mix the samples of a batch or cannot be stacked) are trained by `sequential`; a warning
    says so once. Two small steps of two clients tell, when a federation begins.

    Attributes:
        max_clients_in_flight: clients in one fit. `auto`: as many as fit 2 GiB (on a GPU 40 % of its free memory) with
            parameters, gradients, optimizer state and activations; 8 for convolutions on a CPU, whose activations then
            stay in the cache.
    """

    name: ClassVar[str] = "vectorized"
    max_clients_in_flight: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"

    def train(self, bench: Bench, local: LocalRound) -> Tensor:
        """One fit a chunk of clients; see `Engine.train`."""
        start_D, jobs, client = local.start_D, local.jobs, local.client
        watching = local.callbacks()
        if reason := unstackable(bench, local, watching):
            _say_once(reason)
            return Sequential().train(bench, local)
        plans = [bench.plan(job, client, local.round) for job in jobs]
        if client.factor_at(1) and len({len(plan) for plan in plans}) > 1:
            _say_once("their learning rates follow their steps, and not all have as many")
            return Sequential().train(bench, local)
        order = sorted(range(len(jobs)), key=lambda i: -len(plans[i]))
        updates_CD = start_D.new_empty(len(jobs), len(start_D))
        for chunk, rows_cD in zip(*self._chunks(order, updates_CD, bench.flat, jobs, client), strict=True):
            samples, chunk_plans = _common([jobs[i] for i in chunk], [plans[i] for i in chunk])
            batches = clients.LockStep(samples, chunk_plans, start_D.dtype)
            generators = [bench.generator(jobs[i], local.round) for i in chunk]
            cohort = clients.ClientCohort(
                bench.flat,
                local.optimizer,
                generators,
                start_D,
                batches,
                watched=bool(watching),
                factor=client.factor_at(len(batches)),
            )
            bench.trainer.fit(cohort, batches, local.callbacks())
            cohort.write_updates(rows_cD, start_D)
        if order == sorted(order):
            return updates_CD
        return updates_CD[torch.tensor(order, device=updates_CD.device).argsort()]

    def _chunks(
        self, order: list[int], updates_CD: Tensor, flat: FlatNetwork, jobs: Sequence[Job], client: Client
    ) -> tuple[list[list[int]], list[Tensor]]:
        """The clients of each fit, and the rows of `updates_CD` that they fill."""
        if not order:
            return [], []
        size = self.max_clients_in_flight
        if size == "auto":
            size = clients_that_fit(flat, jobs[0].samples, client.batch_size)
        parts = -(-len(order) // size)
        return [chunk.tolist() for chunk in torch.tensor(order).tensor_split(parts)], list(
            updates_CD.tensor_split(parts)
        )


def clients_that_fit(flat: FlatNetwork, samples: Samples, batch_size: int) -> int:
    """How many clients train at once within the budget that `Vectorized` states."""
    device, item = samples.x.device, next(flat.network.parameters()).element_size()
    if clients.loops_over_clients(flat.network, device):
        return CPU_CONVOLUTIONS
    budget = torch.cuda.mem_get_info(device)[0] * GPU_SHARE if device.type == "cuda" else CPU_BUDGET
    # parameters, gradients, two states of the optimizer, rows of clients that stopped early
    numbers = 5 * flat.dim + activations(flat, (batch_size, *samples.x.shape[1:]), samples.x.dtype)
    return max(1, int(budget // (numbers * item)))


@lru_cache(maxsize=16)
def activations(flat: FlatNetwork, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
    """How many numbers a forward pass over `shape` keeps for its backward pass; counted without computing anything."""
    x = torch.empty(shape, device="meta", dtype=dtype)
    kept = x.numel()

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    own = {**dict(flat.network.named_parameters()), **dict(flat.network.named_buffers())}
    parts = {
        name: torch.empty_like(part, device="meta", requires_grad=name in flat.trainable) for name, part in own.items()
    }
    with flat.eval_mode(), saved_tensors_hooks(count, lambda tensor: tensor):
        functional_call(flat.network, parts, (x,))
    return kept


def _common(jobs: list[Job], plans: list[list[Tensor]]) -> tuple[Samples, list[list[Tensor]]]:
    """One set of samples that all plans count in: the shared one where there is one, else one after the other."""
    bases = {id(job.samples): job.samples for job in jobs}
    if len(bases) == 1:
        return jobs[0].samples, plans
    starts, start = {}, 0
    for key, base in bases.items():
        starts[key] = start
        start += len(base)
    moved = [[step + starts[id(job.samples)] for step in plan] for job, plan in zip(jobs, plans, strict=True)]
    return Samples.cat(list(bases.values())), moved


@cache
def _say_once(reason: str) -> None:
    logging.getLogger("fl_lightning").warning("engine vectorized trains these clients one by one: %s", reason)
