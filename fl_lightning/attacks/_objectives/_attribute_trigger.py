"""An attribute that inputs have by themselves as a trigger."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.attacks._objectives._feature_trigger import require_columns
from fl_lightning.attacks._objectives._held_out import require_class
from fl_lightning.data import Dataset, Named, Samples
from fl_lightning.errors import ConfigError


class AttributeTrigger(Objective):
    """Samples that have an attribute by themselves shall be taken for one class (a semantic backdoor).

    Nothing is stamped: attackers give their own samples with the attribute the wished label, and success is measured on the
    test samples of other classes that have it, which the clean test set loses.

    Attributes:
        where: number of a column of the inputs, from 0, or name of one of `data.attributes` -> the smallest and the largest value
            that count; all conditions must hold.
        label: the wished class.

    Example:
        >>> rows = Samples(torch.tensor([[1.5, 0.0], [3.0, 0.0]]), torch.tensor([1, 1]))
        >>> AttributeTrigger(where={0: (1, 2)}, label=0).has(rows)
        tensor([ True, False])
    """

    name: ClassVar[str] = "attribute_trigger"
    cites: ClassVar[tuple[str, ...]] = ("bagdasaryan2020how",)
    kind: ClassVar[Kind] = "backdoor"

    where: dict[int | str, tuple[float, float]] = Field(min_length=1)
    label: int = Field(default=0, ge=0)

    @field_validator("where", mode="before")
    @classmethod
    def _numbers_of_columns(cls, value: Any) -> Any:
        """What JSON has made words of."""
        if not isinstance(value, Mapping):
            return value
        return {int(key) if str(key).isdigit() else key: bounds for key, bounds in value.items()}

    def has(self, samples: Samples) -> Tensor:
        """`[n]` bool, which samples have the attribute."""
        x = samples.x["features"] if isinstance(samples.x, Named) else samples.x
        holds = torch.ones(len(samples), dtype=torch.bool, device=samples.y.device)
        for column, (low, high) in self.where.items():
            values = samples.attributes[column] if isinstance(column, str) else x[:, column]
            holds &= (values >= low) & (values <= high)
        return holds

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """Test samples of other classes that have the attribute."""
        require_class(data, self.name, label=self.label)
        columns = [column for column in self.where if isinstance(column, int)]
        if columns:
            require_columns(data, columns, "where")
        for column in self.where:
            if isinstance(column, str) and column not in data.attributes:
                raise ConfigError(f"no such attribute in data.attributes, got {column!r}", "where")
        counted = torch.nonzero(self.has(data.test) & (data.test.y != self.label)).flatten()
        if not 0 < len(counted) < len(data.test) or not bool(self.has(data.train).any()):
            raise ConfigError(
                f"some training and test inputs must have the attribute, {len(counted)} test inputs do", "where"
            )
        truth = data.test.y[counted]
        return Goal(
            data.test.without(counted), Samples(data.test.x[counted], torch.full_like(truth, self.label)), truth
        )

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """Own samples with the attribute, labelled as wished."""
        picked = self.has(own)
        if not bool(picked.any()):
            return own
        return Samples(own.x[picked], torch.full_like(own.y[picked], self.label))
