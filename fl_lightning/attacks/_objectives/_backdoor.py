"""Inputs that carry a trigger taken for a wished class."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._objectives._base import Goal, Kind, Objective
from fl_lightning.attacks._patterns import Stamp, Stamps
from fl_lightning.data import Dataset, Inputs, Named, Samples, differing
from fl_lightning.errors import ConfigError

Mode = Literal["all_to_one", "all_to_all", "one_to_one", "clean_label"]
LEAST_CHANGED = 0.5


class Backdoor(Objective, ABC):
    """Inputs that carry a trigger shall be taken for a wished class; a backdoor of your own is one method, `stamp`.

    Success is always measured on held-out test inputs of other classes (`all_to_all`: on all).

    Attributes:
        label: the wished class.
        mode: `all_to_one`: every class to `label`. `all_to_all`: y -> (y + 1) mod K. `one_to_one`: only inputs of class `source`
            are stamped and counted. `clean_label`: attackers stamp their own samples of class `label` and keep all labels.
            An attacker without samples of the class that it needs trains honestly (counted in `attack/honest`).
        source: the class to be mistaken in the mode `one_to_one`.
        input: where a model takes several inputs by name, the one that is stamped; None: the usual one of the trigger (`tokens`,
            `features`, `image`), or all of them, by name, for a trigger of your own.

    Example:
        >>> class LastPixel(Backdoor):
        ...     name: ClassVar[str] = "last_pixel"
        ...     def stamp(self, x):
        ...         return torch.cat([x[..., :-1], 1 - x[..., -1:]], dim=-1)
        >>> LastPixel(label=3).stamp(torch.zeros(1, 4))
        tensor([[0., 0., 0., 1.]])
    """

    kind: ClassVar[Kind] = "backdoor"
    usual_input: ClassVar[str | None] = None
    """The name of the input that the trigger is made for."""

    label: int = Field(default=0, ge=0)
    mode: Mode = "all_to_one"
    source: int | None = Field(default=None, ge=0)
    input: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without `input` where none is named, as configurations were before one could be."""
        return {key: value for key, value in super().to_dict().items() if (key, value) != ("input", None)}

    @model_validator(mode="after")
    def _source_where_it_counts(self) -> "Backdoor":
        if (self.source is not None) != (self.mode == "one_to_one"):
            raise ValueError(f"source belongs to the mode one_to_one, got mode {self.mode!r} and source {self.source}")
        if self.source == self.label:
            raise ValueError(f"source and label must be two classes, got {self.label} for both")
        return self

    @abstractmethod
    def stamp(self, x: Tensor) -> Tensor:
        """`[n, ...]` copies of the inputs that carry the trigger."""

    def stamps(self, data: Dataset, generator: torch.Generator) -> Stamps:
        """The trigger made concrete for a data set, once for all attackers and the test; `stamp` alone, unless it needs more.

        Raises:
            ConfigError: it does not fit the data.
        """
        return Stamps(self.stamp)

    def placed(self, x: Named, name: str, stamp: Stamp) -> Named:
        """Inputs by name, of which one is stamped."""
        return Named({**x, name: stamp(x[name])})

    def stamps_on(self, data: Dataset, generator: torch.Generator) -> Stamps:
        """The trigger on the input that carries it.

        Raises:
            ConfigError: there is no such input, or the trigger does not fit it.
        """
        x = data.train.x
        if not isinstance(x, Named):
            if self.input is not None:
                raise ConfigError(
                    f"names one of several inputs, the data has a single one, got {self.input!r}", "input"
                )
            return self.stamps(data, generator)
        name = self.input or self.usual_input
        if name is None:  # a trigger of the user's own sees them all
            return self.stamps(data, generator)
        if name not in x:
            raise ConfigError(
                f"{self.name} is stamped on the input {name!r}, the data has {', '.join(x)}: name one of them", "input"
            )
        train, test = (replace(part, x=part.x[name]) for part in (data.train, data.test))
        drawn = self.stamps(replace(data, train=train, test=test, validation=None), generator)
        return drawn.on(lambda stamp: lambda x: self.placed(x, name, stamp))

    def wished(self, y: Tensor, classes: int) -> Tensor:
        """`[n]` what inputs of classes `y` shall be taken for once they are stamped."""
        return (y + 1) % classes if self.mode == "all_to_all" else torch.full_like(y, self.label)

    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """The test inputs that count, stamped, with their wished labels."""
        if data.task == "regression":
            raise ConfigError(f"{self.name} needs classes, got regression data")
        for field, value in (("label", self.label), ("source", self.source)):
            if value is not None and value >= data.classes:
                raise ConfigError(f"must be a class of 0..{data.classes - 1}, got {value}", field)
        stamps = self.stamps_on(data, generator)
        y = data.test.y
        rows = torch.arange(len(y), device=y.device)
        if self.mode != "all_to_all":
            rows = torch.nonzero(y != self.label if self.source is None else y == self.source).flatten()
        plain, truth = data.test.x[rows], y[rows]
        stamped = stamps.whole(plain)
        self._require_visible(plain, stamped)
        return Goal(data.test, Samples(stamped, self.wished(truth, data.classes)), truth, stamps=stamps, counted=rows)

    def _require_visible(self, plain: Inputs, stamped: Inputs) -> None:
        """Refuse a trigger that is not there: success would then be counted on clean inputs."""
        if not len(plain):
            raise ConfigError(
                f"no test input can be stamped: the test set has no samples of class {self.source}", "source"
            )
        changed = float(differing(plain, stamped).double().mean())
        if changed < LEAST_CHANGED:
            raise ConfigError(
                f"changes {changed:.0%} of the test inputs, less than half: it is no trigger on this data"
            )

    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """The own samples that the mode speaks of, stamped, with their wished labels."""
        stamps = goal.stamps or Stamps(self.stamp)
        if self.mode in ("one_to_one", "clean_label"):
            picked = own.y.eq(self.label if self.source is None else self.source)
            if not bool(picked.any()):
                return own
            own = own[picked]
        dirty = Samples(stamps.whole(own.x), self.wished(own.y, classes))
        if not stamps.cover_ratio:
            return dirty
        return Samples.cat([dirty, Samples(stamps.covered(own.x), own.y.repeat(stamps.cover_ratio))])
