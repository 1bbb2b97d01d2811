"""Lightning callbacks that regularise or defend local training.

They work in any Trainer: nothing here imports the rest of the project. A callback that also serves stacked clients says
`stackable = True` and reads `module.n_stacked` (1 or C) and `module.generators` (one per client); all others get one
client at a time.
"""

from lightning.pytorch import Callback

from fl_lightning.callbacks.fl_wbc import FLWBC
from fl_lightning.callbacks.frozen import Frozen
from fl_lightning.callbacks.hessian import HessianRegularizer
from fl_lightning.callbacks.loss_ascent import LossAscent
from fl_lightning.callbacks.norm_ball import NormBall
from fl_lightning.callbacks.proximal import ProximalPull

CALLBACKS: dict[str, type[Callback]] = {
    "fl_wbc": FLWBC,
    "hessian_regularizer": HessianRegularizer,
    "proximal_pull": ProximalPull,
}
"""Callbacks by the name that configurations use."""

__all__ = ["CALLBACKS", "FLWBC", "Frozen", "HessianRegularizer", "LossAscent", "NormBall", "ProximalPull"]
