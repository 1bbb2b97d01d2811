"""What an attacker wants the global model to do, and how success is counted.

Success is measured on samples that no client trains on: for `label_map` and backdoors on the test set, for `target_samples`
on the targets themselves, which are taken out of the clean test set.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fl_lightning.attacks._patterns import Stamps
from fl_lightning.data import Dataset, Samples
from fl_lightning.registry import Component

Kind = Literal["any", "relabel", "samples", "backdoor"]


class Goal(NamedTuple):
    """An objective made concrete for a data set.

    Attributes:
        clean: the clean test set.
        success: inputs with the labels that the attacker wishes; None: the attacker wishes any error on `clean`.
        truth: `[n]` the right classes of `success`, where it is known.
        shared: samples with wished labels that every attacker holds, or None.
        stamps: a backdoor's trigger, drawn for this data set, or None.
        distributed: whether each attacker has a part of the trigger only.
        withheld: `[n]` rows of the training split that no client may train on, or None.
        counted: `[n]` rows of `clean` that `success` shows stamped, or None.
    """

    clean: Samples
    success: Samples | None
    truth: Tensor | None = None
    shared: Samples | None = None
    stamps: Stamps | None = None
    distributed: bool = False
    withheld: Tensor | None = None
    counted: Tensor | None = None

    def seen_by(self, rank: int) -> "Goal":
        """The goal as the attacker of a rank knows it: with its own part of a distributed trigger.

        Args:
            rank: the attacker's place among all malicious clients of the population.
        """
        if self.stamps is None or not self.distributed:
            return self
        return self._replace(stamps=self.stamps.part(rank))

    def copy_of_shared(self) -> Samples:
        """A copy of the samples that every attacker holds.

        Raises:
            ValueError: there are none.
        """
        if self.shared is None:
            raise ValueError("the goal holds no targets")
        return Samples(self.shared.x.clone(), self.shared.y.clone())


class Objective(Component, ABC):
    """An attacker's objective.

    Attributes:
        kind: `any` error, `relabel` whole classes, `samples` given, or a `backdoor`; what an attack's `serves` speaks of.
    """

    kind: ClassVar[Kind] = "backdoor"

    if TYPE_CHECKING:

        @property
        def label(self) -> int | None:
            """The class that is wished, where it is one; a field of objectives that ask for it."""
            return None
    else:
        label = None

    @abstractmethod
    def goal(self, data: Dataset, generator: torch.Generator) -> Goal:
        """Test samples that success is measured on.

        Raises:
            ConfigError: the objective makes no sense for this data set.
        """

    @abstractmethod
    def dirty(self, own: Samples, goal: Goal, classes: int) -> Samples:
        """What an attacker trains on for this objective, made from its own samples `own`.

        Returns:
            Dirty samples; `own` itself, if nothing can be made of it.
        """
