"""One client after the other: the plain reference for every other engine."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fl_lightning.client import Client, ClientModule
from fl_lightning.engines._base import Bench, Engine, Job
from fl_lightning.flat import FlatNetwork
from fl_lightning.registry import component


class _TakeUpdate(Callback):
    """Reads the trained parameters before Lightning's teardown moves them to the CPU."""

    def __init__(self, flat: FlatNetwork, global_D: Tensor, row_D: Tensor):
        self.flat, self.global_D, self.row_D = flat, global_D, row_D

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.row_D.copy_(self.flat.vector() - self.global_D)


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
        for job, row_D in zip(jobs, updates_CD, strict=True):
            bench.flat.load_(global_D)
            module = ClientModule(bench.flat, client.optimizer, bench.generator(job, round))
            batches = [(job.samples.x[step], job.samples.y[step]) for step in bench.plan(job, client, round)]
            bench.trainer.fit(module, batches, [*callbacks(), _TakeUpdate(bench.flat, global_D, row_D)])
        return updates_CD
