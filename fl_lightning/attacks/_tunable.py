"""Search ranges of hyper-parameters, declared where the field is; every slot has them, see `fl_lightning.registry`."""

from fl_lightning.registry import Choice, Tunable, as_span

__all__ = ["Choice", "Tunable", "as_span"]
