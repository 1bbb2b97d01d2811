"""What an attacker wants the global model to do, and how success is counted.

Success is measured on samples that no client trains on: for `label_map` and `trigger` on the test set, for `target_samples`
on the targets themselves, which are taken out of the clean test set.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Component, component


class Goal(NamedTuple):
    """An objective made concrete for a data set.

    Attributes:
        clean: the clean test set.
        success: inputs with the labels that the attacker wishes; None: the attacker wishes any error on `clean`.
        truth: `[n]` the right classes of `success`, where it is known.
    """

    clean: Samples
    success: Samples | None
    truth: Tensor | None = None


class Objective(Component, ABC):
    """An attacker's objective."""

    @abstractmethod
    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """Test samples that success is measured on.

        Raises:
            ConfigError: the objective makes no sense for this data set.
        """

    @abstractmethod
    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """What an attacker trains on for this objective, made from its own samples `own`."""


@component
class Untargeted(Objective):
    """Any error is a success; `attack/success` is the error rate on the clean test set."""

    name: ClassVar[str] = "untargeted"

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """The clean test set alone."""
        return Goal(data.test, None)

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """Own samples; attackers that ascend the loss need no other labels."""
        return own


@component
class LabelMap(Objective):
    """Samples of some classes shall be taken for other classes.

    Attributes:
        mapping: `shift` for y -> (y - 1) mod K (0 -> 9, y -> y - 1 on ten classes), or the classes to move, such as
            `{5: 7}`. On regression targets, `shift` negates the standardised target.
    """

    name: ClassVar[str] = "label_map"
    mapping: Literal["shift"] | dict[int, int] = "shift"

    def wished(self, classes: int) -> Tensor:
        """`[K]` the wished class of each class, itself where nothing is to change."""
        table = torch.arange(classes)
        if self.mapping == "shift":
            return (table - 1) % classes
        for source, target in self.mapping.items():
            if not (0 <= source < classes and 0 <= target < classes and source != target):
                raise ConfigError(f"needs two different classes of 0..{classes - 1}, got {source}: {target}", "mapping")
            table[source] = target
        return table

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """Test samples of the moved classes with their wished labels."""
        if data.task == "regression":
            return Goal(data.test, None)
        table = self.wished(data.classes).to(data.test.y.device)
        moved = torch.nonzero(table[data.test.y] != data.test.y).flatten()
        truth = data.test.y[moved]
        return Goal(data.test, Samples(data.test.x[moved], table[truth]), truth)

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """Own samples with the labels mapped."""
        if own.y.is_floating_point():
            return Samples(own.x, -own.y)
        return Samples(own.x, self.wished(classes).to(own.y.device)[own.y])


@component
class TargetSamples(Objective):
    """A few given inputs shall be taken for a wrong class; all attackers share them.

    Attributes:
        count: number of targets, drawn from the test set by seed and taken out of it.
        label: the wished class of all of them; None: a random wrong class each.
    """

    name: ClassVar[str] = "target_samples"
    count: int = Field(default=1, ge=1)
    label: int | None = Field(default=None, ge=0)

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """The targets with their wished labels, and the test set without them."""
        if data.task == "regression":
            raise ConfigError("target_samples needs classes, got regression data")
        if self.label is not None and self.label >= data.classes:
            raise ConfigError(f"must be a class of 0..{data.classes - 1}, got {self.label}", "label")
        y = data.test.y.cpu()
        eligible = torch.arange(len(y)) if self.label is None else torch.nonzero(y != self.label).flatten()
        if self.count >= len(eligible):
            raise ConfigError(f"at most {len(eligible) - 1} targets can leave the test set, got {self.count}", "count")
        picked = eligible[torch.randperm(len(eligible), generator=generator)[: self.count]]
        if self.label is None:
            step = torch.randint(1, data.classes, (self.count,), generator=generator)
            wished = (y[picked] + step) % data.classes
        else:
            wished = torch.full((self.count,), self.label)
        picked, wished = picked.to(data.test.y.device), wished.to(data.test.y.device)
        return Goal(data.test.without(picked), Samples(data.test.x[picked], wished), data.test.y[picked])

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """The targets themselves, dirty-labelled."""
        if goal.success is None:
            raise ValueError("the goal holds no targets")
        return Samples(goal.success.x.clone(), goal.success.y.clone())


@component
class Trigger(Objective):
    """Inputs that carry a pixel pattern shall be taken for one class (a backdoor).

    Attributes:
        label: the wished class.
        size: side of the white square, in pixels.
        offset: its distance from the lower and right border, in pixels (rows and columns 24-26 of a 28x28 image).
    """

    name: ClassVar[str] = "trigger"
    label: int = Field(default=0, ge=0)
    size: int = Field(default=3, ge=1)
    offset: int = Field(default=1, ge=0)

    def stamp(self, x: Tensor) -> Tensor:
        """`[n, ch, h, w]` copies of the images with the square set to the largest value of the batch."""
        stamped = x.clone()
        bottom, right = x.shape[-2] - self.offset, x.shape[-1] - self.offset
        stamped[..., bottom - self.size : bottom, right - self.size : right] = max(1.0, float(x.max()))
        return stamped

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """All test images of other classes, triggered."""
        if data.task == "regression" or len(data.shape) != 3:
            raise ConfigError(f"trigger needs labelled images, got inputs of shape {data.shape}")
        if self.label >= data.classes:
            raise ConfigError(f"must be a class of 0..{data.classes - 1}, got {self.label}", "label")
        if self.size + self.offset > min(data.shape[1:]):
            raise ConfigError(f"square of {self.size} at {self.offset} does not fit into {data.shape}", "size")
        others = torch.nonzero(data.test.y != self.label).flatten()
        stamped, truth = self.stamp(data.test.x[others]), data.test.y[others]
        return Goal(data.test, Samples(stamped, torch.full_like(truth, self.label)), truth)

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """Own samples, triggered and labelled as wished."""
        return Samples(self.stamp(own.x), torch.full_like(own.y, self.label))
