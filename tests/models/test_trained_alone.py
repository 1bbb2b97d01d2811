"""A LightningModule trained alone by a plain Trainer is the client's update, whatever its training does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fl_lightning.clients import Client, check_loop
from fl_lightning.data import Samples
from fl_lightning.engines import Bench, Job, LocalRound, Sequential, SharedTrainer, TrainerSettings
from fl_lightning.engines._keyed import keyed_randomness
from fl_lightning.engines._sequential import Steps
from fl_lightning.errors import ConfigError
from fl_lightning.models import FlatNetwork, Lightning
from fl_lightning.randomness import generator


class Base(LightningModule):
    """Two dense layers, batch normalisation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class EachEpoch(Base):
    """Nesterov momentum under a schedule of epochs."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
        return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.5)]


class EachStep(Base):
    """A schedule of steps that asks the Trainer how many there will be."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OnPlateau(Base):
    """A schedule that looks at what the module logs."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop(self.parameters(), lr=0.01)
        schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "loss"}}


class Clipped(Base):
    """Hooks: gradients scaled down, a learning rate by `global_step`, weights changed between epochs."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = 0.01 / (1 + self.global_step + self.current_epoch)

    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            self.head.bias.mul_(0.5)


class Rests(Base):
    """A part that the constructor has put into eval mode: normalised by fixed statistics, nothing dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Dropout(0.5))
        self.body.eval()


class Augments(Base):
    """Dropout, and noise on every gathered batch, by Lightning's own hook."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Dropout(0.5))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + torch.randn_like(batch[0]), batch[1]


class Remembers(Base):
    """Counts its batches, keeps what it has computed, and replaces a buffer instead of changing it in place."""

    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.register_buffer("queue", torch.zeros(6), persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        self.seen.append(batch_idx)
        self.hidden = self.body(batch[0])
        scores = self.head(self.hidden + self.queue)
        self.queue = self.queue + self.hidden.detach().mean(0)
        return F.cross_entropy(scores, batch[1]) * len(self.seen)


class Closures(Base):
    """An optimizer that asks for the loss several times a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Manual(Base):
    """Steps by itself, every second batch, with a schedule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]) / 2)
        if batch_idx % 2:
            optimizer.step()  # type: ignore[union-attr]
            optimizer.zero_grad()  # type: ignore[union-attr]
            schedule.step()  # type: ignore[union-attr, call-arg]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.5)
        return [optimizer], [lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Pair(Manual):
    """Two optimizers that take turns, as adversarial training does."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for part in optimizers if batch_idx % 2 else optimizers[:1]:
            self.toggle_optimizer(part)
            loss = F.cross_entropy(self(batch[0]), batch[1])
            part.zero_grad()
            self.manual_backward(loss)
            part.step()
            self.untoggle_optimizer(part)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=0.1), torch.optim.Adam(self.head.parameters(), lr=0.02)


WAYS: list[tuple[type[Base], int, dict[str, Any]]] = [
    (Base, 1, {}),
    (Base, 2, {"accumulate": 2}),
    (Base, 2, {"clip": 0.05}),
    (EachEpoch, 3, {}),
    (EachStep, 2, {"accumulate": 3}),
    (OnPlateau, 4, {}),
    (Clipped, 2, {}),
    (Rests, 2, {}),
    (Augments, 2, {}),
    (Remembers, 2, {}),
    (Closures, 1, {}),
    (Manual, 2, {}),
    (Pair, 2, {}),
]


@pytest.fixture(scope="module")
def samples() -> Samples:
    random = generator(0, "trained alone")
    x = torch.randn(60, 5, generator=random, dtype=torch.float64)
    return Samples(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


@pytest.mark.parametrize(("cls", "epochs", "settings"), WAYS, ids=lambda value: getattr(value, "__name__", None))
def test_the_clients_update_is_what_a_plain_trainer_makes(
    cls: type[Base], epochs: int, settings: dict[str, Any], samples: Samples
):
    client = Client(loop="module", epochs=epochs, batch_size=8)
    torch.manual_seed(0)
    flat = FlatNetwork(Lightning(module=cls).network((5,), 3).double(), "cross_entropy")
    bench = Bench(flat, SharedTrainer(TrainerSettings(precision=64, **settings)), 0)
    start_D = flat.vector()
    jobs = [Job(0, samples, torch.arange(29)), Job(1, samples, torch.arange(20, 60))]
    updates_CD = Sequential().train(bench, LocalRound(start_D, jobs, client, 0))
    for job, update_D in zip(jobs, updates_CD, strict=True):
        plan = bench.plan(job, client, 0)
        torch.manual_seed(0)
        module: Any = Lightning(module=cls).network((5,), 3).double()
        alone = Trainer(
            max_epochs=epochs,
            precision="64-true",
            accumulate_grad_batches=settings.get("accumulate", 1),
            gradient_clip_val=settings.get("clip"),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with keyed_randomness(0, 0, job.client):
            alone.fit(module.module, Steps(samples, plan, len(plan) // epochs))
        end_D = flat.like(module).vector()
        assert float((end_D - start_D - update_D).abs().max()) < 1e-10
        assert float(update_D.abs().max()) > 1e-3


def test_settings_of_training_are_refused_where_nobody_would_follow_them():
    plain, manual = nn.Linear(2, 2), Lightning(module=Manual).network((5,), 3)
    for settings in ({"accumulate": 2}, {"clip": 1.0}):
        with pytest.raises(ConfigError, match=r"trainer\.(accumulate|clip): belongs to client\.loop: module"):
            check_loop(Client(), plain, **settings)
        with pytest.raises(ConfigError, match="Manual steps by itself"):
            check_loop(Client(loop="module"), manual, **settings)
