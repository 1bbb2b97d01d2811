"""One client after the other: the plain reference for every other engine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl_lightning import clients
from fl_lightning.clients import batch_plan
from fl_lightning.data import Inputs, Samples, gathered
from fl_lightning.engines._base import Bench, Engine, Job, LocalRound
from fl_lightning.engines._keyed import keyed_randomness
from fl_lightning.models import UserModule


class Steps:
    """The batches of one client, gathered from its samples as they are needed; one epoch each time they are asked for.

    Args:
        samples: the rows that the plan counts in.
        plan: row numbers step by step.
        length: steps an epoch; None: all of them are one.
        form: makes the batch out of inputs and targets.
    """

    def __init__(
        self,
        samples: Samples,
        plan: Sequence[Tensor],
        length: int | None = None,
        form: Callable[[Inputs, Tensor], Any] = lambda x, y: (x, y),
    ):
        self.samples, self.plan, self.form = samples, plan, form
        self.length = length or len(plan)
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        x, y = self.samples.x, self.samples.y
        start = self.epoch * self.length
        self.epoch = (self.epoch + 1) % self.epochs
        for step in self.plan[start : start + self.length]:
            yield self.form(gathered(x, step), y.index_select(0, step))

    @property
    def epochs(self) -> int:
        """How many epochs the plan makes."""
        return -(-len(self.plan) // self.length)


class Sequential(Engine):
    """Clients train one after the other in the shared Trainer.

    Whatever a network draws from the global random state during training (dropout of any kind, augmentation) follows from seed,
    round and client, and leaves that state as it was.
    """

    name: ClassVar[str] = "sequential"

    def train(self, bench: Bench, local: LocalRound) -> Tensor:
        """One fit a client; see `Engine.train`."""
        start_D = local.start_D
        updates_CD = start_D.new_empty(len(local.jobs), len(start_D))
        if start_D.device.type == "cpu":  # pooling is several times faster
            bench.flat.network.to(memory_format=torch.channels_last)
        fit = fit_module if local.client.loop == "module" else fit_client
        for job, row_D in zip(local.jobs, updates_CD, strict=True):
            bench.flat.load_(start_D)
            with keyed_randomness(bench.seed, local.round, job.client):
                fit(bench, local, job)
            torch.sub(bench.flat.vector(), start_D, out=row_D)
        return updates_CD


def fit_client(bench: Bench, local: LocalRound, job: Job) -> None:
    """Train the shared network on a client's samples by the federation's own loop."""
    watching, plan = local.callbacks(), bench.plan(job, local.client, local.round)
    module = clients.ClientModule(
        bench.flat,
        local.optimizer,
        bench.generator(job, local.round),
        watched=bool(watching),
        factor=local.client.factor_at(len(plan)),
    )
    changed = local.client.transformed()
    bench.trainer.fit(module, Steps(job.samples, plan, form=lambda x, y: (changed(x), y)), watching)


def fit_module(bench: Bench, local: LocalRound, job: Job) -> None:
    """Train the user's LightningModule on a client's samples by its own training step, optimizers and hooks."""
    network = bench.flat.network
    if not isinstance(network, UserModule):
        raise TypeError(f"the module loop trains a UserModule, got {type(network).__name__}")
    plan = bench.plan(job, local.client, local.round)
    one_epoch = batch_plan(len(job.rows), replace(local.client, epochs=1, steps=None), torch.Generator())
    changed = local.client.transformed()
    steps = Steps(job.samples, plan, len(one_epoch), lambda x, y: network.batch_of(changed(x), y))
    network.train()
    lent = network.lent()
    module: Any = lent.module
    module.fl_client = clients.UserClient(lent, bench.flat.sample_loss, [bench.generator(job, local.round)])
    bench.trainer.fit(module, steps, local.callbacks(), epochs=steps.epochs)
    del module.fl_client
    network.take_back(lent)
