"""Schedulers: how the local learning rate changes over the rounds, or over the local steps of each round.

References:
    Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, eq. 5 (cosine).
    Goyal, Dollár, Girshick, et al., "Accurate, Large Minibatch SGD", 2017, section 2.2 (warmup).
"""

from abc import ABC, abstractmethod
from math import cos, pi
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fl_lightning.registry import Component

Share = Annotated[float, Field(ge=0, le=1)]


class Scheduler(Component, ABC):
    """A factor on the learning rate of the local optimizer that follows the share of the training that is done.

    Attributes:
        per: `run`: the share of the communication rounds; `round`: the share of the local steps of each round.
    """

    per: Literal["run", "round"] = "run"

    @abstractmethod
    def factor(self, done: float) -> float:
        """The factor, > 0.

        Args:
            done: share of the rounds, or of the steps, that is done, from 0 (inclusive) to 1 (exclusive).
        """


class Cosine(Scheduler):
    r"""From 1 down to `floor` by half a cosine wave, $f + (1 - f) (1 + \cos \pi t) / 2$.

    Attributes:
        floor: the factor that it comes near.
    """

    name: ClassVar[str] = "cosine"
    cites: ClassVar[tuple[str, ...]] = ("loshchilov2017sgdr",)
    floor: Share = 0.0

    def factor(self, done: float) -> float:
        """See the class."""
        return self.floor + (1 - self.floor) * (1 + cos(pi * done)) / 2


class Milestones(Scheduler):
    """Multiplied by `gamma` at every milestone.

    Attributes:
        at: shares of the training at which the learning rate changes.
        gamma: the factor of each change.
    """

    name: ClassVar[str] = "milestones"
    at: tuple[Share, ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0)

    def factor(self, done: float) -> float:
        """`gamma` to the power of the milestones passed."""
        return float(self.gamma ** sum(done >= share for share in self.at))


class Warmup(Scheduler):
    """From `start` to 1 in a straight line over a first share of the training, then 1.

    Attributes:
        share: how long it warms up.
        start: the first factor.
    """

    name: ClassVar[str] = "warmup"
    cites: ClassVar[tuple[str, ...]] = ("goyal2017accurate",)
    share: float = Field(default=0.1, gt=0, le=1)
    start: float = Field(default=0.1, gt=0, le=1)

    def factor(self, done: float) -> float:
        """See the class."""
        return min(1.0, self.start + (1 - self.start) * done / self.share)
