"""Some classes taken for others."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.data import Dataset, Samples
from fl_lightning.errors import ConfigError


class LabelMap(Objective):
    """Samples of some classes shall be taken for other classes.

    Attributes:
        mapping: `shift` for y -> (y - 1) mod K (0 -> 9, y -> y - 1 on ten classes), `static` for y -> K - 1 - y (the middle one
            of an odd number of classes stays), `pair` for y -> (y + 1) mod K, or the classes to move, such as `{5: 7}`. On
            regression targets, the named ones negate the standardised target.
    """

    name: ClassVar[str] = "label_map"
    kind: ClassVar[Kind] = "relabel"
    mapping: Literal["shift", "static", "pair"] | dict[int, int] = "shift"

    def wished(self, classes: int) -> Tensor:
        """`[K]` the wished class of each class, itself where nothing is to change."""
        table = torch.arange(classes)
        if isinstance(self.mapping, str):
            return {"shift": (table - 1) % classes, "static": table.flip(0), "pair": (table + 1) % classes}[
                self.mapping
            ]
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
