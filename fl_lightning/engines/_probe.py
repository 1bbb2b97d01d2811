"""Whether clients can train in lock step, tried out instead of guessed from the names of layers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fl_lightning import clients
from fl_lightning.callbacks._contract import is_stackable
from fl_lightning.clients import Client, Sgd
from fl_lightning.data import Samples
from fl_lightning.engines._base import Bench, Job, LocalRound
from fl_lightning.engines._keyed import keyed_randomness
from fl_lightning.engines._sequential import Steps

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback

ROWS = 8
"""Samples of the larger of the two batches that are tried."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference of two updates, relative to the largest entry: what another order of additions makes of two steps."""


def unstackable(bench: Bench, local: LocalRound, callbacks: "Sequence[Callback]") -> str | None:
    """Why clients cannot train in lock step, or None.

    What is known beforehand is said at once. The rest is tried, once for a federation and a way of training: two steps of two
    clients, the second a smaller batch of one of them, with the real loss and callbacks, stacked and one by one. An exception, or
    updates that differ, are the reason.

    Args:
        bench: architecture, Trainer and seed; left as it was.
        local: the round that is about to be trained.
        callbacks: of one fit.
    """
    client = local.client
    if client.loop == "module":
        return "the module trains itself"
    if any(isinstance(job.samples.x, Mapping) for job in local.jobs):
        return "their inputs are several tensors by name"
    if client.transform is not None:
        return f"their batches go through {client.transform}"
    for callback in callbacks:
        if not is_stackable(callback):
            return f"the callback {type(callback).__name__} does not say that it works on stacked clients"
    if not client.optimizer.elementwise:
        return f"the optimizer {client.optimizer.name!r} is not elementwise"
    way = (client.batch_size, client.optimizer.plain, bool(client.optimizer.max_grad_norm), *map(type, callbacks))
    if way not in bench.tried:
        bench.tried[way] = _tried(bench, local)
    return bench.tried[way]


def _tried(bench: Bench, local: LocalRound) -> str | None:
    trainer, flat = bench.trainer, bench.flat
    kept = list(trainer.reports), list(trainer.logged), trainer.watch, flat.network.training
    trainer.watch = lambda n_clients: None
    jobs = list(local.jobs[:2]) if len(local.jobs) > 1 else [local.jobs[0]] * 2
    plans = _plans(jobs, local.client)
    try:
        with keyed_randomness(bench.seed, local.round, -1):
            expected_2D = torch.stack([_alone(bench, local, job, plan) for job, plan in zip(jobs, plans, strict=True)])
        with keyed_randomness(bench.seed, local.round, -1):
            stacked_2D = _stacked(bench, local, jobs, plans)
    except Exception as error:  # whatever vmap, or a layer under it, refuses
        text = (str(error).splitlines() or [""])[0]
        return f"stacked, they fail with {type(error).__name__}: {text[:120]}"
    finally:
        trainer.reports[:], trainer.logged[:] = kept[0], kept[1]
        trainer.watch = kept[2]
        flat.load_(local.start_D).train(kept[3])
    size = float(expected_2D.abs().nan_to_num().max())
    apart = float((stacked_2D - expected_2D).abs().nan_to_num().max())
    limit = 0.05 if trainer.settings.precision == "bf16" else TOLERANCE.get(expected_2D.dtype, 1e-3)
    if apart > limit * size:
        return f"stacked, their updates differ by {apart / size:.0e} of the largest entry (layers that draw random numbers?)"
    return None


def _plans(jobs: Sequence[Job], client: Client) -> list[list[Tensor]]:
    """Two steps of the first client, the second on half a batch; one step of the other."""
    size = min(client.batch_size, ROWS, *(len(job.rows) for job in jobs))
    return [[jobs[0].rows[:size], jobs[0].rows[: max(1, size // 2)]], [jobs[1].rows[-size:]]]


def _optimizer(client: Client) -> Sgd:
    """Gradient descent, through the same code as the client's own optimizer: what is compared are gradients."""
    momentum = 0.0 if client.optimizer.plain else 1e-9
    return Sgd(lr=0.05, momentum=momentum, max_grad_norm=client.optimizer.max_grad_norm)


def _alone(bench: Bench, local: LocalRound, job: Job, plan: list[Tensor]) -> Tensor:
    bench.flat.load_(local.start_D)
    watching = local.callbacks()
    module = clients.ClientModule(
        bench.flat, _optimizer(local.client), bench.generator(job, local.round), watched=bool(watching)
    )
    bench.trainer.fit(module, Steps(job.samples, plan), watching)
    return bench.flat.vector() - local.start_D


def _stacked(bench: Bench, local: LocalRound, jobs: Sequence[Job], plans: list[list[Tensor]]) -> Tensor:
    samples = jobs[0].samples
    if jobs[1].samples is not samples:
        plans = [plans[0], [step + len(samples) for step in plans[1]]]
        samples = Samples.cat([samples, jobs[1].samples])
    watching = local.callbacks()
    generators = [bench.generator(job, local.round) for job in jobs]
    batches = clients.LockStep(samples, plans, local.start_D.dtype)
    cohort = clients.ClientCohort(
        bench.flat, _optimizer(local.client), generators, local.start_D, batches, watched=bool(watching)
    )
    bench.trainer.fit(cohort, batches, watching)
    updates_2D = local.start_D.new_empty(2, len(local.start_D))
    cohort.write_updates(updates_2D, local.start_D)
    return updates_2D
