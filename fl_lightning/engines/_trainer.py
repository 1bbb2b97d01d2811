"""The one Lightning Trainer that all clients of all rounds share."""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import Field

from fl_lightning.callbacks._contract import client_of, n_stacked, reported
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Settings, plain_fields

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration is checked without it
    from lightning.pytorch import Callback, LightningModule

PRECISIONS: dict[Any, tuple[Any, torch.dtype]] = {
    32: ("32-true", torch.float32),
    64: ("64-true", torch.float64),
    "bf16": ("bf16-mixed", torch.float32),
}

Reports = list[list[dict[str, float]]]
"""For each fit what each of its callbacks had to report."""


class TrainerSettings(Settings):
    """Settings of the shared Trainer.

    Attributes:
        accelerator: Lightning's accelerator name.
        precision: 32; 64 for tests of identity; `bf16` trains with products in bfloat16 (on two cores with AVX-512 a round of
            CNN clients takes 0.75 of the time, and its updates differ by several percent).
        accumulate: batches whose gradients are gathered before an optimizer step, for `client.loop: module`.
        clip: largest L2 norm of a step's gradient, longer ones are scaled down to it, for `client.loop: module`; None: any.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    precision: Literal[32, 64, "bf16"] = Field(default=32)
    accumulate: int = Field(default=1, ge=1)
    clip: float | None = Field(default=None, gt=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without `clip` where there is none, as configurations were before there was any."""
        return {key: value for key, value in plain_fields(self).items() if (key, value) != ("clip", None)}


class Batches(Protocol):
    """Ready batches, any number of times; not a plain list, which Lightning takes for a collection of loaders."""

    def __iter__(self) -> Iterator[Any]:
        """From the first batch."""

    def __len__(self) -> int:
        """Number of batches."""


class _Lent:
    """Batches that can be taken back: Lightning holds on to a loader, in cycles that live until they are collected."""

    def __init__(self, batches: Batches):
        self.batches: Batches | None = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches or ())

    def __len__(self) -> int:
        return len(self.batches or ())


def _check_accelerator(accelerator: str) -> None:
    """Refuse a device that this machine does not have."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["gpu"] = any(there.values())
    if not there.get(accelerator, True):
        raise ConfigError(
            f"this machine has no {accelerator} that torch can use; say cpu, or auto", "trainer.accelerator"
        )


class SharedTrainer:
    """A Trainer that can fit any number of modules, one after the other.

    Building a Trainer costs more than a client's local training of a small model. Lightning lets a Trainer fit again
    only to continue the same training: without the rewind below a second `fit` does no step at all, silently.
    """

    def __init__(self, settings: TrainerSettings):
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
        from lightning.pytorch import Trainer

        for name in ("lightning.pytorch", "pytorch_lightning"):
            logging.getLogger(name).setLevel(logging.WARNING)  # else every fit says that it stopped at max_epochs
        _check_accelerator(settings.accelerator)
        self.settings = settings
        precision, self.dtype = PRECISIONS[settings.precision]
        self.trainer = Trainer(
            accelerator=settings.accelerator,
            devices=1,
            precision=precision,
            max_epochs=1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[LightningEnvironment()],  # one process on one device, whatever a scheduler has set around it
        )
        self.watch: Callable[[int], None] = lambda n_clients: None
        """Told how many clients each fit has trained (progress bars)."""
        self.reports: Reports = []
        """What callbacks with `metrics` had to report after each fit, until somebody clears it."""
        self.logged: list[dict[str, float]] = []
        """What each fitted module has logged, until somebody clears it."""
        # Lightning would move module and optimizers to the CPU after every fit, and empty the GPU's memory cache.
        self.trainer.strategy.teardown = _leave_in_place  # type: ignore[method-assign]
        self._own: list[Callback] = list(self.trainer.callbacks)  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:
        """The device that clients train on."""
        return self.trainer.strategy.root_device

    def fit(
        self,
        module: "LightningModule",
        batches: Batches,
        callbacks: "list[Callback]",
        epochs: int = 1,
    ) -> None:
        """Train a module on ready batches.

        Args:
            module: any LightningModule.
            batches: one epoch each time they are asked for.
            callbacks: Lightning callbacks of this fit.
            epochs: how many.
        """
        self._rewind()
        self.trainer.fit_loop.max_epochs = epochs
        # Lightning 2.6 looks at a name that torch has deprecated; nothing that a user could change.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        # A user's module may validate and log by itself; here it is trained only. Layers with fixed statistics are meant to rest.
        warnings.filterwarnings(
            "ignore",
            message=".*(validation_step|val_dataloader|logger|does not have many workers|in eval mode at the start).*",
        )
        self.trainer.callbacks = [*self._own, *callbacks]  # type: ignore[attr-defined]
        if client_of(module) is module:  # a user's own comes in the modes that it is to be trained in
            module.train()
        lent = _Lent(batches)
        self._fit(module, lent)
        lent.batches = module.trainer = None
        self.watch(n_stacked(module))
        self.logged.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})
        if any(report := [reported(callback) for callback in callbacks]):
            self.reports.append(report)

    def _fit(self, module: "LightningModule", lent: _Lent) -> None:
        """Lightning answers Ctrl-C by leaving the program, and deaf to further ones; here it stays Ctrl-C."""
        before = signal.getsignal(signal.SIGINT)
        try:
            self.trainer.fit(module, train_dataloaders=lent)
        except SystemExit:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from None

    def _rewind(self) -> None:
        loop = self.trainer.fit_loop
        loop.epoch_progress.reset()
        epoch = loop.epoch_loop
        epoch.batch_progress.reset()
        epoch.scheduler_progress.reset()
        epoch.automatic_optimization.optim_progress.reset()
        epoch.manual_optimization.optim_step_progress.reset()
        # The only counter of a loop without a public `reset`; left alone, logged steps would go on from the client before
        epoch._batches_that_stepped = 0


def _leave_in_place() -> None:
    """A teardown that leaves everything on its device."""
