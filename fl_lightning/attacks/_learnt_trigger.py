"""What attacks with a trigger that is learnt during the run have in common."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._backdoor_training import BackdoorTraining
from fl_lightning.attacks._objectives import Goal, Objective, Trigger
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.data import Dataset, Named, Samples
from fl_lightning.defenses import State
from fl_lightning.errors import ConfigError
from fl_lightning.models import Loss
from fl_lightning.registry import Slot


class LearntTrigger(BackdoorTraining, ABC):
    """A backdoor whose trigger changes from round to round; success is counted with the trigger of the round.

    The objective says the wished class only: its pattern is not used.
    """

    serves: ClassVar[tuple[str, ...]] = ("trigger",)

    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=Trigger)
    poison_fraction: Annotated[float, Tunable(0.05, 0.6)] = Field(default=0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_label(self) -> "LearntTrigger":
        trigger = self.objective
        if not isinstance(trigger, Trigger) or trigger.mode != "all_to_one" or trigger.pattern or trigger.dba:
            raise ValueError(f"{self.name} learns the trigger: of the objective only label can be set, got {trigger!r}")
        return self

    @property
    def label(self) -> int:
        """The wished class."""
        return cast(Trigger, self.objective).label

    def check(self, data: Dataset, loss: Loss) -> None:
        """Images must be all that the model looks at."""
        super().check(data, loss)
        if isinstance(data.train.x, Named):
            raise ConfigError(f"{self.name} draws on images alone, the data has {', '.join(data.train.x)}")

    def limits(self, view: View) -> tuple[Tensor, Tensor]:
        """What pixels of 0 and 1 are in the data."""
        limits = view.limits
        if limits is None:
            raise ValueError(f"{self.name} draws on images, the objective {self.objective.name!r} does not")
        return limits

    @abstractmethod
    def stamped(self, x: Tensor, limits: tuple[Tensor, Tensor], state: State) -> Tensor:
        """`[n, ch, h, w]` copies of the images with the trigger that a state holds, as the test carries it."""

    def success(self, goal: Goal, state: State) -> Samples | None:
        """The test images of other classes with the current trigger; before the first attack, with the objective's."""
        if not state or goal.stamps is None or goal.stamps.limits is None:
            return goal.success
        others = torch.nonzero(goal.clean.y != self.label).flatten()
        stamped = self.stamped(goal.clean.x[others], goal.stamps.limits, state)
        return Samples(stamped, torch.full_like(goal.clean.y[others], self.label))

    def reached(self, view: View, state: dict[str, Any], own: Samples) -> float:
        """Share of own samples of other classes that the broadcast model takes for the wished class with this trigger."""
        others = own[torch.nonzero(own.y != self.label).flatten()]
        if not len(others):
            return 0.0
        stamped = self.stamped(others.x, self.limits(view), state)
        return view.flat.accuracy(view.global_D, Samples(stamped, torch.full_like(others.y, self.label)))
