"""What every Lightning callback for local training must do.

check_callback(lambda: MyCallback(strength=0.1))
"""

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fl_lightning.randomness import generator
from fl_lightning.testing._checks import require, run_all

STEPS = 4
Make = Callable[[], Callback]


class Classifier(LightningModule):
    """A small classifier that knows nothing of federations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.generators = [generator(0, "callback")]
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=generator(0, "weights", parameter.numel()))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 6]` inputs to `[B, 3]` scores."""
        scores: Tensor = self.layers(x)
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_quietly(module: LightningModule, loader: DataLoader[Any], callbacks: list[Callback]) -> int:
    """One epoch of Lightning's own Trainer on the CPU, nothing printed or written; returns the number of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises on loggers and workers
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
    return trainer.global_step


def fit(callbacks: list[Callback]) -> Tensor:
    """`[D]` parameters after a few steps on fixed batches."""
    with torch.random.fork_rng(devices=[]):
        module = Classifier()
    random = generator(0, "data")
    batches = [(torch.randn(8, 6, generator=random), torch.randint(3, (8,), generator=random)) for _ in range(STEPS)]
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None, generator=random)  # type: ignore[arg-type]
    done = fit_quietly(module, loader, callbacks)
    require(done == STEPS, f"{done} instead of {STEPS} steps were done")
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def check_callback(make: Make) -> None:
    """Run every check of `CALLBACK_CHECKS`.

    Args:
        make: makes a fresh callback.

    Raises:
        AssertionError: naming the check that failed, and why.
    """
    run_all(CALLBACK_CHECKS, type(make()).__name__, make)


def works_in_any_trainer(make: Make) -> None:
    """A fit with a module from outside stays finite."""
    require(fit([make()]).isfinite().all(), "the parameters are not finite")


def repeatable(make: Make) -> None:
    """Two fits give the same bits, with fresh callbacks and with the same one again: a new fit starts from nothing."""
    callback = make()
    first, again, fresh = fit([callback]), fit([callback]), fit([make()])
    require(torch.equal(first, fresh), "two fresh callbacks gave different results")
    require(torch.equal(first, again), "a second fit with the same callback gave another result")


def global_random_state_untouched(make: Make) -> None:
    """With generators on the module nothing is drawn from the global one."""
    state = torch.get_rng_state()
    fit([make()])
    require(torch.equal(state, torch.get_rng_state()), "the global random state has changed")


def two_can_be_attached(make: Make) -> None:
    """Two instances work in one Trainer; those that have a `state_dict` need different state keys."""
    require(fit([make(), make()]).isfinite().all(), "the parameters are not finite")


def pickles(make: Make) -> None:
    """It can be sent to another process, before and after use."""
    callback = make()
    require(torch.equal(fit([pickle.loads(pickle.dumps(callback))]), fit([callback])), "the copy behaves differently")
    pickle.loads(pickle.dumps(callback))


def state_round_trips(make: Make) -> None:
    """What `state_dict` gives, another instance loads and gives again."""
    used, fresh = make(), make()
    fit([used])
    saved = used.state_dict()
    fresh.load_state_dict(saved)
    before, after = pickle.dumps(saved), pickle.dumps(fresh.state_dict())
    require(len(before) == len(after), "the state has changed")


CALLBACK_CHECKS: dict[str, Callable[[Make], None]] = {
    check.__name__: check
    for check in (
        works_in_any_trainer,
        repeatable,
        global_random_state_untouched,
        two_can_be_attached,
        pickles,
        state_round_trips,
    )
}
"""Every check by name."""
