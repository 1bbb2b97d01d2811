"""An attribute that inputs have by themselves as a trigger."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.attacks._objectives._feature_trigger import require_columns
from fl_lightning.attacks._objectives._held_out import require_class
from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError


class AttributeTrigger(Objective):
    """Rows of a table that have an attribute by themselves shall be taken for one class (a semantic backdoor).

    Nothing is stamped: attackers give their own samples with the attribute the wished label, and success is measured on the
    test samples of other classes that have it, which the clean test set loses.

    Attributes:
        where: number of a column, from 0 -> the smallest and the largest value that count; all conditions must hold.
        label: the wished class.

    Example:
        >>> AttributeTrigger(where={0: (1, 2)}, label=0).has(torch.tensor([[1.5, 0.0], [3.0, 0.0]]))
        tensor([ True, False])
    """

    name: ClassVar[str] = "attribute_trigger"
    cites: ClassVar[tuple[str, ...]] = ("bagdasaryan2020how",)
    kind: ClassVar[Kind] = "backdoor"

    where: dict[int, tuple[float, float]] = Field(min_length=1)
    label: int = Field(default=0, ge=0)

    def has(self, x: Tensor) -> Tensor:
        """`[n]` bool, which inputs have the attribute."""
        holds = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for column, (low, high) in self.where.items():
            holds &= (x[:, column] >= low) & (x[:, column] <= high)
        return holds

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """Test samples of other classes that have the attribute."""
        require_class(data, self.name, label=self.label)
        require_columns(data, self.where, "where")
        counted = torch.nonzero(self.has(data.test.x) & (data.test.y != self.label)).flatten()
        if not 0 < len(counted) < len(data.test) or not bool(self.has(data.train.x).any()):
            raise ConfigError(
                f"some training and test inputs must have the attribute, {len(counted)} test inputs do", "where"
            )
        truth = data.test.y[counted]
        return Goal(
            data.test.without(counted), Samples(data.test.x[counted], torch.full_like(truth, self.label)), truth
        )

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """Own samples with the attribute, labelled as wished."""
        picked = self.has(own.x)
        if not bool(picked.any()):
            return own
        return Samples(own.x[picked], torch.full_like(own.y[picked], self.label))
