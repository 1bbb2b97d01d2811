"""One client after the other: the plain reference for every other engine."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.clients import ClientModule
from fl_lightning.data import Inputs, Samples, gathered
from fl_lightning.engines._base import Bench, Engine, LocalRound
from fl_lightning.registry import component


class Steps:
    """The batches of one client, gathered from its samples as they are needed."""

    def __init__(self, samples: Samples, plan: Sequence[Tensor]):
        self.samples, self.plan = samples, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        x, y = self.samples.x, self.samples.y
        return ((gathered(x, step), y.index_select(0, step)) for step in self.plan)


@component
class Sequential(Engine):
    """Clients train one after the other in the shared Trainer."""

    name: ClassVar[str] = "sequential"

    def train(self, bench: Bench, local: LocalRound) -> Tensor:
        """One fit a client; see `Engine.train`."""
        start_D, optimizer = local.start_D, local.client.optimizer.at(local.round)
        updates_CD = start_D.new_empty(len(local.jobs), len(start_D))
        if start_D.device.type == "cpu":  # pooling is several times faster
            bench.flat.network.to(memory_format=torch.channels_last)
        for job, row_D in zip(local.jobs, updates_CD, strict=True):
            bench.flat.load_(start_D)
            watching = local.callbacks()
            module = ClientModule(bench.flat, optimizer, bench.generator(job, local.round), watched=bool(watching))
            bench.trainer.fit(module, Steps(job.samples, bench.plan(job, local.client, local.round)), watching)
            torch.sub(bench.flat.vector(), start_D, out=row_D)
        return updates_CD
