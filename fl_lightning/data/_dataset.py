"""What a data set is to the rest of the platform: tensors in memory."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.registry import Component, component

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Samples:
    """Inputs `x` `[n, ...]` (float32) and targets `y` `[n]` (int64 classes, or float32 for regression)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> "Samples":
        return Samples(self.x[index], self.y[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Samples":
        """Moved to a device; floating-point parts also to `dtype`."""
        y = self.y.to(device, dtype) if self.y.is_floating_point() else self.y.to(device)
        return Samples(self.x.to(device, dtype), y)

    def without(self, index: Tensor) -> "Samples":
        """All samples but those at `index`."""
        keep = torch.ones(len(self), dtype=torch.bool, device=self.y.device)
        keep[index] = False
        return Samples(self.x[keep], self.y[keep])

    @staticmethod
    def cat(parts: "list[Samples]") -> "Samples":
        """Several sets of samples, one after the other."""
        return Samples(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        train: what is dealt to the clients.
        test: the clean test set; no client ever sees it.
        task: classification or regression.
        classes: number of classes K (1 for regression).
        writers: `[n_train]` natural owner of each training sample (FEMNIST's writers), or None.
        validation: samples that the server holds back for its own checks, empty unless asked for.
        limits: for images, `[ch, 1, 1]` each, what pixels of 0 and of 1 are in `x` after all transforms; None: unknown.
    """

    train: Samples
    test: Samples
    task: Task
    classes: int
    writers: Tensor | None = None
    validation: Samples | None = None
    limits: tuple[Tensor, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """Moved to a device; floating-point parts also to `dtype`."""
        validation = None if self.validation is None else self.validation.to(device, dtype)
        train, test = self.train.to(device, dtype), self.test.to(device, dtype)
        limits = self.limits and (self.limits[0].to(device, dtype), self.limits[1].to(device, dtype))
        return replace(self, train=train, test=test, validation=validation, limits=limits)


@component
class Data(Component, ABC):
    """A source of data: `load()` finds, checks and reads it.

    Args:
        validation: test samples that the server holds back for its own checks, drawn once for all experiments; the
            clean test set does not contain them.
    """

    validation: int = Field(default=0, ge=0)

    @abstractmethod
    def load(self) -> Dataset:
        """The data set, read from disk; downloaded first where it is missing.

        Raises:
            DataError: the data cannot be had, or fails its checksum.
        """

    @abstractmethod
    def synthetic(self) -> Dataset:
        """A small learnable stand-in of the same shapes and classes that needs no files (`--fast`)."""
