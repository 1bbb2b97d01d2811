"""Data sets, held in memory as tensors."""

from fl_lightning.data._dataset import Data, Dataset, Samples
from fl_lightning.registry import Registry

REGISTRIES = {"data": Registry("data", [])}

__all__ = ["Data", "Dataset", "Samples"]
