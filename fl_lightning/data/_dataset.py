"""What a data set is to the rest of the platform: tensors in memory, or mapped from a file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.randomness import generator
from fl_lightning.registry import Component, name_of

SMALL = (2000, 500)
"""Training and test samples of a stand-in."""

Task = Literal["classification", "regression"]

Inputs = Any
"""What a model takes: a tensor `[n, ...]`, or `Named`: names with such tensors (tokens beside their mask)."""


class Named(dict[str, Any]):
    """Several inputs by name, whose rows are taken like those of one tensor: `x["tokens"]`, but `x[:2]`, `x[rows]`, `len(x)`.

    Example:
        >>> x = Named(tokens=torch.tensor([[1, 2], [3, 0]]), mask=torch.tensor([[True, True], [True, False]]))
        >>> x[1:]["tokens"], len(x)
        (tensor([[3, 0]]), 2)
    """

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else Named({n: part[key] for n, part in self.items()})

    def __len__(self) -> int:
        return len(next(iter(self.values()), ()))

    def clone(self) -> "Named":
        """A copy that shares no memory."""
        return Named({name: part.clone() for name, part in self.items()})


def take(x: Inputs, index: Tensor | slice) -> Inputs:
    """Some rows of the inputs."""
    return x[index]


def gathered(x: Inputs, rows: Tensor) -> Inputs:
    """Rows of the inputs by number; three times faster than indexing on a CPU."""
    if isinstance(x, Mapping):
        return Named({name: part.index_select(0, rows) for name, part in x.items()})
    return x.index_select(0, rows)


def pieces(x: Inputs, size: int) -> list[Inputs]:
    """The inputs in parts of at most `size` rows."""
    if isinstance(x, Mapping):
        parts = [torch.split(part, size) for part in x.values()]
        return [Named(zip(x, piece, strict=True)) for piece in zip(*parts, strict=True)]
    return list(torch.split(x, size))


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Several inputs, one after the other."""
    if isinstance(parts[0], Mapping):
        return Named({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return torch.cat(list(parts))


def alike(one: Inputs, other: Inputs) -> bool:
    """Whether two inputs are equal, entry by entry."""
    if isinstance(one, Mapping):
        return all(torch.equal(part, other[name]) for name, part in one.items())
    return bool(torch.equal(one, other))


def differing(one: Inputs, other: Inputs) -> Tensor:
    """`[n]` bool, which rows of two inputs of one shape differ."""
    if isinstance(one, Mapping):
        return torch.stack([differing(part, other[name]) for name, part in one.items()]).any(0)
    rows_n: Tensor = (one != other).flatten(1).any(1)
    return rows_n


def chosen_rows(mask: Tensor, one: Inputs, other: Inputs) -> Inputs:
    """Rows of `one` where `[n]` bool `mask` says so, of `other` elsewhere."""
    if isinstance(one, Mapping):
        return Named({name: chosen_rows(mask, part, other[name]) for name, part in one.items()})
    return torch.where(mask.view(-1, *[1] * (one.ndim - 1)), one, other)


def random_inputs(x: Inputs, count: int, random: torch.Generator, spread: bool = False) -> Inputs:
    """`count` inputs that mean nothing: uniform numbers, uniform token numbers, masks of random samples.

    Args:
        x: inputs that they shall look like.
        count: how many.
        random: CPU generator.
        spread: real numbers lie in the range of `x` instead of 0 to 1; whole numbers always do.
    """
    if isinstance(x, Mapping):
        return Named({name: random_inputs(part, count, random, spread) for name, part in x.items()})
    if x.dtype == torch.bool:
        return x[torch.randint(len(x), (count,), generator=random).to(x.device)]
    shape = (count, *x.shape[1:])
    if not x.is_floating_point():
        return torch.randint(int(x.min()), int(x.max()) + 1, shape, generator=random).to(x)
    low, high = (float(x.min()), float(x.max())) if spread else (0.0, 1.0)
    return (low + (high - low) * torch.rand(shape, generator=random)).to(x)


def moved(x: Inputs, device: torch.device | str, dtype: torch.dtype | None) -> Inputs:
    """The inputs on a device; floating-point parts also as `dtype`, whole numbers and masks as they are."""
    if isinstance(x, Mapping):
        return Named({name: moved(part, device, dtype) for name, part in x.items()})
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


@dataclass(frozen=True)
class Samples:
    """Inputs and their targets.

    Attributes:
        x: `[n, ...]` one tensor, or a mapping of names to tensors of n rows each; token numbers are whole numbers.
        y: `[n]` int64 classes, or float32 for regression.
        owner: `[n]` whose each sample is, a number of `Dataset.owner_names`, or None.
        attributes: name -> `[n]` what else is known of each sample, and no input of the model.
    """

    x: Inputs
    y: Tensor
    owner: Tensor | None = None
    attributes: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.x, Mapping) and not isinstance(self.x, Named):
            object.__setattr__(self, "x", Named(self.x))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> "Samples":
        owner = None if self.owner is None else self.owner[index]
        attributes = {name: part[index] for name, part in self.attributes.items()}
        return Samples(take(self.x, index), self.y[index], owner, attributes)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Samples":
        """Moved to a device; floating-point inputs and targets also to `dtype`."""
        owner = None if self.owner is None else self.owner.to(device)
        attributes = {name: part.to(device) for name, part in self.attributes.items()}
        return Samples(moved(self.x, device, dtype), moved(self.y, device, dtype), owner, attributes)

    def without(self, index: Tensor) -> "Samples":
        """All samples but those at `index`."""
        keep = torch.ones(len(self), dtype=torch.bool, device=self.y.device)
        keep[index] = False
        return self[keep]

    @staticmethod
    def cat(parts: "list[Samples]") -> "Samples":
        """Inputs and targets of several sets of samples, one after the other."""
        return Samples(joined([part.x for part in parts]), torch.cat([part.y for part in parts]))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        train: what is dealt to the clients.
        test: the clean test set; no client ever sees it.
        task: classification or regression.
        classes: number of classes K (1 for regression).
        writers: `[n_train]` owner of each training sample, where `train` does not carry them.
        validation: samples that the server holds back for its own checks, empty unless asked for.
        limits: for images, `[ch, 1, 1]` each, what pixels of 0 and of 1 are in `x` after all transforms; None: unknown.
        owner_names: the owners that samples name by number (FEMNIST's writers, a table's clients).
        class_names: names of the classes, where they have any.
    """

    train: Samples
    test: Samples
    task: Task
    classes: int
    writers: InitVar[Tensor | None] = None
    validation: Samples | None = None
    limits: tuple[Tensor, Tensor] | None = None
    owner_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self, writers: Tensor | None) -> None:
        if self.train.owner is None and writers is not None and len(writers) == len(self.train):
            object.__setattr__(self, "train", replace(self.train, owner=writers))
        object.__setattr__(self, "writers", self.train.owner)

    @property
    def shape(self) -> Any:
        """Shape of one input, without the batch dimension; a mapping of names to shapes where inputs are one."""
        x = self.train.x
        if isinstance(x, Mapping):
            return {name: tuple(part.shape[1:]) for name, part in x.items()}
        return tuple(x.shape[1:])

    @property
    def images(self) -> bool:
        """Whether inputs are images, `[channels, height, width]`."""
        return isinstance(self.train.x, Tensor) and self.train.x.ndim == 4

    @property
    def owners(self) -> Tensor | None:
        """`[n_train]` natural owner of each training sample, or None."""
        return self.train.owner

    @property
    def attributes(self) -> Mapping[str, Tensor]:
        """Name -> `[n_train]` what else is known of the training samples."""
        return self.train.attributes

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """Moved to a device; floating-point parts also to `dtype`."""
        validation = None if self.validation is None else self.validation.to(device, dtype)
        train, test = self.train.to(device, dtype), self.test.to(device, dtype)
        limits = self.limits and (self.limits[0].to(device, dtype), self.limits[1].to(device, dtype))
        return replace(self, train=train, test=test, validation=validation, limits=limits)


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

    def synthetic(self) -> Dataset:
        """A small stand-in of the same shapes and classes for `--fast`.

        Where a data set knows no better: some training and test samples of everybody, the inputs dealt out to other labels.
        """
        dataset = self.load()
        random = generator(0, "synthetic", name_of(type(self)))
        train, test = (
            _stand_in(part, size, random) for part, size in zip((dataset.train, dataset.test), SMALL, strict=True)
        )
        return replace(dataset, train=train, test=test)


def _stand_in(samples: Samples, size: int, random: torch.Generator) -> Samples:
    """At most `size` samples, of every owner some, with their inputs shuffled."""
    order = torch.randperm(len(samples), generator=random)
    if samples.owner is not None:  # everybody's first sample comes before anybody's second
        by_owner = samples.owner[order].argsort(stable=True)
        counts = samples.owner.bincount()
        ranks = torch.empty_like(order)
        ranks[by_owner] = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        order = order[ranks.argsort(stable=True)]
    kept = samples[order[:size]]
    return replace(kept, x=take(kept.x, torch.randperm(len(kept), generator=random)))
