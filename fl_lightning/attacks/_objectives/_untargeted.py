"""Any error."""

from typing import ClassVar

import torch

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.data import Dataset, Samples


class Untargeted(Objective):
    """Any error is a success; `attack/success` is the error rate on the clean test set."""

    name: ClassVar[str] = "untargeted"
    kind: ClassVar[Kind] = "any"

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """The clean test set alone."""
        return Goal(data.test, None)

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """Own samples; attackers that ascend the loss need no other labels."""
        return own
