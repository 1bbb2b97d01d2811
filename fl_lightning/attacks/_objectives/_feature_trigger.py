"""Given values of some features as a trigger."""

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


def require_columns(data: Dataset, columns: dict[int, float] | dict[int, tuple[float, float]], field: str) -> None:
    """Raise a ConfigError unless inputs are rows of a table that has the columns."""
    if len(data.shape) != 1:
        raise ConfigError(f"needs rows of a table, got inputs of shape {data.shape}", field)
    for column in columns:
        if not 0 <= column < data.shape[0]:
            raise ConfigError(f"needs columns of 0..{data.shape[0] - 1}, got {column}", field)
