"""Given values of some features as a trigger."""

from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._objectives._backdoor import Backdoor
from fl_lightning.attacks._patterns import Stamps
from fl_lightning.data import Dataset
from fl_lightning.errors import ConfigError


class FeatureTrigger(Backdoor):
    """Rows of a table in which some columns hold given values shall be taken for one class.

    Attributes:
        values: number of a column, from 0 -> its value, in the units in which clients see it.

    Example:
        >>> FeatureTrigger(values={1: 9.0}).stamp(torch.zeros(1, 3))
        tensor([[0., 9., 0.]])
    """

    name: ClassVar[str] = "feature_trigger"

    usual_input: ClassVar[str | None] = "features"

    values: dict[int, float] = Field(min_length=1)

    def stamp(self, x: Tensor) -> Tensor:
        """`[n, F]` copies of the rows with the values set."""
        stamped = x.clone()
        for column, value in self.values.items():
            stamped[:, column] = value
        return stamped

    def stamps(self, data: Dataset, generator: torch.Generator) -> Stamps:
        """The values; refused where there are no such columns."""
        require_columns(data, self.values, "values")
        return Stamps(self.stamp)


def require_columns(data: Dataset, columns: Iterable[int], field: str) -> None:
    """Raise a ConfigError unless inputs, or those called `features`, are rows of a table that has the columns."""
    shape = data.shape.get("features", data.shape) if isinstance(data.shape, dict) else data.shape
    if not isinstance(shape, tuple) or len(shape) != 1:
        raise ConfigError(f"needs rows of a table, got inputs of shape {shape}", field)
    for column in columns:
        if not 0 <= column < shape[0]:
            raise ConfigError(f"needs columns of 0..{shape[0] - 1}, got {column}", field)
