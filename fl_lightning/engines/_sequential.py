"""One client after the other: the plain reference for every other engine."""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor

from fl_lightning.clients import Client, ClientModule
from fl_lightning.data import Samples
from fl_lightning.engines._base import Bench, Engine, Job
from fl_lightning.registry import component


class Steps:
    """The batches of one client, gathered from its samples as they are needed."""

    def __init__(self, samples: Samples, plan: Sequence[Tensor]):
        self.samples, self.plan = samples, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.samples.x, self.samples.y
        return ((x.index_select(0, step), y.index_select(0, step)) for step in self.plan)


@component
class Sequential(Engine):
    """Clients train one after the other in the shared Trainer."""

    name: ClassVar[str] = "sequential"

    def train(
        self,
        bench: Bench,
        global_D: Tensor,
        jobs: Sequence[Job],
        client: Client,
        round: int,
        callbacks: Callable[[], list[Callback]],
    ) -> Tensor:
        """One fit a client; see `Engine.train`."""
        updates_CD = global_D.new_empty(len(jobs), len(global_D))
        if global_D.device.type == "cpu":  # pooling is several times faster
            bench.flat.network.to(memory_format=torch.channels_last)
        for job, row_D in zip(jobs, updates_CD, strict=True):
            bench.flat.load_(global_D)
            watching = callbacks()
            module = ClientModule(
                bench.flat, client.optimizer.at(round), bench.generator(job, round), watched=bool(watching)
            )
            bench.trainer.fit(module, Steps(job.samples, bench.plan(job, client, round)), watching)
            torch.sub(bench.flat.vector(), global_D, out=row_D)
        return updates_CD
