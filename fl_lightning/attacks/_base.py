"""What an attack is: it replaces the updates of the malicious clients."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.attacks._objectives import Goal, Objective, Untargeted
from fl_lightning.attacks._view import LEVELS, Knowledge, View
from fl_lightning.data import Dataset, Samples
from fl_lightning.defenses import State
from fl_lightning.models import FlatNetwork, Loss
from fl_lightning.registry import Component, Slot

if TYPE_CHECKING:
    from fl_lightning.config import Experiment


class Poisoned(NamedTuple):
    """What the malicious clients submit.

    Attributes:
        updates: `[M, D]`.
        state: what to remember for the next adversarial round.
        metrics: the attack's own figures, logged under `attack/`.
    """

    updates: Tensor
    state: State = MappingProxyType({})
    metrics: Mapping[str, float] = MappingProxyType({})


class Attack(Component, ABC):
    """An attack by the malicious clients of a round, which act as one.

    Attributes:
        needs: the least knowledge with which the attack works.
        serves: the kinds of objectives that it can pursue (names of objectives are taken, too).
        finite: whether what it sends is finite. False: NaN and Inf are its point.
        knowledge: what the threat model grants.
        visible_updates: number of benign updates that partial knowledge makes visible.
        objective: what the attack is after.
        inflate: the malicious clients claim this many times the samples that they have.
    """

    needs: ClassVar[Knowledge] = "none"
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel", "samples", "backdoor")
    finite: ClassVar[bool] = True

    knowledge: Knowledge = "none"
    visible_updates: int = Field(default=0, ge=0)
    objective: Annotated[Objective, Slot("objective")] = Field(default_factory=Untargeted)
    inflate: float = Field(default=1.0, ge=1, le=1e9, allow_inf_nan=False)

    @model_validator(mode="after")
    def _threat_model(self) -> "Attack":
        if LEVELS.index(self.knowledge) < LEVELS.index(self.needs):
            raise ValueError(f"{self.name} needs at least {self.needs} knowledge, got {self.knowledge!r}")
        if self.visible_updates and self.knowledge != "partial":
            raise ValueError(f"visible_updates belongs to partial knowledge, got knowledge {self.knowledge!r}")
        if not {self.objective.kind, self.objective.name} & set(self.serves):
            got = f"objective {self.objective.name!r} of kind {self.objective.kind!r}"
            raise ValueError(f"{self.name} serves {', '.join(self.serves)}, got {got}")
        return self

    def check(self, data: Dataset, loss: Loss) -> None:
        """Refuse what the attack cannot work on, before anything is trained.

        Args:
            data: the data set of the federation.
            loss: the loss of its model.

        Raises:
            ConfigError: they do not fit this attack.
        """

    def cautions(self, experiment: "Experiment") -> list[str]:
        """What is unwise about an experiment with this attack, in sentences that are told once, before it runs."""
        return []

    def expense(self, experiment: "Experiment") -> str | None:
        """What the crafting of a round costs, told once before a run; None: no more than a few passes over the updates."""
        return None

    def success(self, goal: Goal, state: State) -> Samples | None:
        """What counts as success now; an attack that learns its trigger moves it.

        Args:
            goal: the objective made concrete, with the samples that are held out from every attacker: they never reach `poison`.
            state: what `poison` returned last.

        Returns:
            Inputs with the labels that the attacker wishes; None: any error on the clean test set is a success.
        """
        return goal.success

    def check_model(self, flat: FlatNetwork) -> None:
        """Refuse a model that the attack cannot work on, before anything is trained.

        Args:
            flat: the model of the federation.

        Raises:
            ConfigError: it does not fit this attack.
        """

    def init(self) -> State:
        """State before the first adversarial round; empty unless the attack remembers something."""
        return {}

    @abstractmethod
    def poison(self, view: View, state: State) -> Poisoned:
        """The malicious updates of one adversarial round.

        Args:
            view: what the attackers know; asking it for more raises `KnowledgeError`.
            state: what `poison` returned in the adversarial round before.
        """
