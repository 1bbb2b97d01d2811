"""A few given inputs taken for a wrong class."""

from typing import ClassVar

import torch
from pydantic import Field

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError


class TargetSamples(Objective):
    """A few given inputs shall be taken for a wrong class; all attackers share them.

    Attributes:
        count: number of targets, drawn from the test set by seed and taken out of it.
        label: the wished class of all of them; None: a random wrong class each.
    """

    name: ClassVar[str] = "target_samples"
    kind: ClassVar[Kind] = "samples"
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
        targets = Samples(data.test.x[picked], wished)
        return Goal(data.test.without(picked), targets, data.test.y[picked], shared=targets)

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """The targets themselves, dirty-labelled."""
        return goal.copy_of_shared()
