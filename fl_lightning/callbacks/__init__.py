"""Lightning callbacks that regularise or defend local training.

They work in any Trainer: nothing here imports the rest of the project. A callback that also serves stacked clients says
`stackable = True` and reads `module.n_stacked` (1 or C) and `module.generators` (one per client); all others get one
client at a time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from fl_lightning.callbacks.fl_wbc import FLWBC
    from fl_lightning.callbacks.frozen import Frozen
    from fl_lightning.callbacks.hessian import HessianRegularizer
    from fl_lightning.callbacks.loss_ascent import LossAscent
    from fl_lightning.callbacks.norm_ball import NormBall
    from fl_lightning.callbacks.proximal import ProximalPull

    CALLBACKS: dict[str, type[Callback]]

NAMES = {"fl_wbc": "FLWBC", "hessian_regularizer": "HessianRegularizer", "proximal_pull": "ProximalPull"}
"""The callbacks that configurations can name."""

_MODULES = {
    "FLWBC": "fl_wbc",
    "Frozen": "frozen",
    "HessianRegularizer": "hessian",
    "LossAscent": "loss_ascent",
    "NormBall": "norm_ball",
    "ProximalPull": "proximal",
}
"""Where each callback lives: loaded when first used, with Lightning, which takes seconds."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "CALLBACKS":
            return {word: __getattr__(cls) for word, cls in NAMES.items()}
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ["CALLBACKS", "FLWBC", "Frozen", "HessianRegularizer", "LossAscent", "NormBall", "ProximalPull"]
