"""What all data sets with a training and a test split share: caps, and samples held back for the server."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data._dataset import SMALL, Data, Dataset, Task
from fl_lightning.data._files import DataError, Files, Folder, OwnFiles
from fl_lightning.randomness import generator

SYNTHETIC = SMALL


class SplitData(Data):
    """Data with a training and a test split.

    Args:
        train_samples: so many training samples, drawn at random, instead of all.
        test_samples: so many of the remaining test samples, drawn at random, instead of all.
    """

    train_samples: int | None = Field(default=None, ge=1)
    test_samples: int | None = Field(default=None, ge=1)

    places: ClassVar[tuple[Files | Folder | OwnFiles, ...]] = ()
    """Where the files may be: any one will do, the first can be fetched. Empty: the data comes with a package."""
    sizes: ClassVar[tuple[int, int]]
    """Number of training and test samples."""
    shape: ClassVar[tuple[int, ...]]
    classes: ClassVar[int] = 10
    task: ClassVar[Task] = "classification"

    @abstractmethod
    def read(self) -> Dataset:
        """Everything that the files hold, before any cap."""

    @abstractmethod
    def stand_in(self) -> Dataset:
        """Synthetic data of the same shapes and classes, before any cap."""

    def load(self) -> Dataset:
        """The data set; its files are found, checked, and fetched where they are missing.

        Raises:
            DataError: the files cannot be had or fail their checksum, or fewer samples are there than asked for.
        """
        return split(self.read(), self.name, self.validation, self.train_samples, self.test_samples)

    def synthetic(self) -> Dataset:
        """The stand-in, with the caps that it can fulfil; validation gets at most half of the test samples."""
        dataset = self.stand_in()
        validation = min(self.validation, len(dataset.test) // 2)
        train = min(self.train_samples or len(dataset.train), len(dataset.train))
        left = len(dataset.test) - validation
        return split(dataset, self.name, validation, train, min(self.test_samples or left, left))


def split(dataset: Dataset, name: str, validation: int, train: int | None, test: int | None) -> Dataset:
    """Hold samples of the test set back for validation, then draw random subsets of training and test set.

    The draws are keyed by the name of the data set alone, so that all seeds of an experiment share one clean test set.
    Samples keep their order.

    Raises:
        DataError: more samples asked for than there are.
    """
    if validation >= len(dataset.test):
        raise DataError(f"validation={validation} leaves nothing of the {len(dataset.test)} test samples", name)
    held = draw(len(dataset.test), validation, name, "validation")
    clean = dataset.test.without(held) if validation else dataset.test  # a copy only where it is needed
    kept = chosen(len(dataset.train), train, name, "train_samples")
    return replace(
        dataset,
        train=dataset.train[kept],
        test=clean[chosen(len(clean), test, name, "test_samples")],
        validation=dataset.test[held] if validation else None,
    )


def chosen(available: int, count: int | None, name: str, purpose: str) -> Tensor | slice:
    """What `draw` gives; everything, without a copy, when the count is None."""
    return slice(None) if count is None else draw(available, count, name, purpose)


def draw(available: int, count: int, name: str, purpose: str) -> Tensor:
    """Sorted indices of `count` random samples.

    Raises:
        DataError: fewer are available.
    """
    if count > available:
        raise DataError(f"{purpose}={count}, but there are only {available} samples", name)
    return torch.randperm(available, generator=generator(0, "data", name, purpose))[:count].sort().values
