"""Local training: a client's settings and optimizer, and the LightningModules that train one client or many in lock step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fl_lightning.clients._optimizers import Adam, Optimizer, Sgd
from fl_lightning.clients._schedulers import Cosine, Milestones, Scheduler, Warmup
from fl_lightning.clients._settings import (
    REGISTRIES,
    CallbackConfig,
    Client,
    batch_plan,
    check_last_batches,
    check_loop,
    check_transform,
    merging_lone,
)

if TYPE_CHECKING:
    from fl_lightning.clients._dense_stack import DenseStack
    from fl_lightning.clients._lock_step import ClientCohort, CohortBatch, LockStep, loops_over_clients
    from fl_lightning.clients._module import ClientModule, LocalTraining, UserClient

_MODULES = {
    "ClientCohort": "_lock_step",
    "ClientModule": "_module",
    "CohortBatch": "_lock_step",
    "DenseStack": "_dense_stack",
    "LocalTraining": "_module",
    "LockStep": "_lock_step",
    "UserClient": "_module",
    "loops_over_clients": "_lock_step",
}
"""What trains, and where it lives: loaded when first used, with Lightning, which takes seconds."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "REGISTRIES",
    "Adam",
    "CallbackConfig",
    "Client",
    "ClientCohort",
    "ClientModule",
    "CohortBatch",
    "Cosine",
    "DenseStack",
    "LocalTraining",
    "LockStep",
    "Milestones",
    "Optimizer",
    "Scheduler",
    "Sgd",
    "UserClient",
    "Warmup",
    "batch_plan",
    "check_last_batches",
    "check_loop",
    "check_transform",
    "loops_over_clients",
    "merging_lone",
]
