"""Models: the papers' architectures."""

from fl_lightning.models._base import Loss, Model
from fl_lightning.registry import Registry

REGISTRIES = {"model": Registry("model", [])}

__all__ = ["Loss", "Model"]
