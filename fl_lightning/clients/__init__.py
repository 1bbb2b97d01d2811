"""Local training: a client's settings and optimizer, and the LightningModules that train one client or many in lock step."""

from fl_lightning.clients._dense_stack import DenseStack
from fl_lightning.clients._lock_step import ClientCohort, CohortBatch, LockStep, loops_over_clients
from fl_lightning.clients._module import ClientModule, LocalTraining
from fl_lightning.clients._optimizers import Adam, Optimizer, Sgd
from fl_lightning.clients._settings import (
    REGISTRIES,
    CallbackConfig,
    Client,
    batch_plan,
    check_last_batches,
    check_loop,
)

__all__ = [
    "REGISTRIES",
    "Adam",
    "CallbackConfig",
    "Client",
    "ClientCohort",
    "ClientModule",
    "CohortBatch",
    "DenseStack",
    "LocalTraining",
    "LockStep",
    "Optimizer",
    "Sgd",
    "batch_plan",
    "check_last_batches",
    "check_loop",
    "loops_over_clients",
]
