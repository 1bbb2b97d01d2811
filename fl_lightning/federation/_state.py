"""What a federation remembers from round to round, and what the steps of a round hand to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fl_lightning.aggregators import Geometry
from fl_lightning.defenses import State
from fl_lightning.engines import Job
from fl_lightning.participation import Cohort

if TYPE_CHECKING:
    from fl_lightning.federation._federation import Federation

Metrics = dict[str, float]


class RoundReport(NamedTuple):
    """What happened in a round.

    Attributes:
        round: from 0.
        metrics: figures by name; evaluation figures are there in evaluated rounds only.
        cohort: who took part.
    """

    round: int
    metrics: Metrics
    cohort: Cohort


class Trained(NamedTuple):
    """What the clients of a round have trained, before any of them attacks.

    Attributes:
        cohort: who takes part.
        jobs: what each of them trains on.
        updates_CD: `[C, D]` the honest updates.
        weights_C: `[C]` their weights.
        metrics: what callbacks and defenses at the clients report.
    """

    cohort: Cohort
    jobs: list[Job]
    updates_CD: Tensor
    weights_C: Tensor
    metrics: Mapping[str, float] = MappingProxyType({})


class Submitted(NamedTuple):
    """What the clients of a round send to the server.

    Attributes:
        cohort: who takes part.
        jobs: what each of them trains on.
        updates_CD: `[C, D]` the updates.
        weights_C: `[C]` their weights.
        poisoned_C: `[C]` bool, which of them an attacker made.
        metrics: what callbacks, defenses at the clients and the attack report.
    """

    cohort: Cohort
    jobs: list[Job]
    updates_CD: Tensor
    weights_C: Tensor
    poisoned_C: Tensor
    metrics: Metrics

    @property
    def attacked(self) -> bool:
        """Whether any update was made by an attacker."""
        return bool(self.poisoned_C.any())


class Defended(NamedTuple):
    """What the defenses have left of the submitted updates.

    Attributes:
        geometry: of the rows that stay, as the defenses have changed them.
        weights_R: `[R]` their weights.
        keep_C: `[C]` bool, which of the submitted rows they are.
        metrics: what the defenses report, and how well they detected.
    """

    geometry: Geometry
    weights_R: Tensor
    keep_C: Tensor
    metrics: Metrics

    @property
    def updates_RD(self) -> Tensor:  # noqa: N802
        """`[R, D]` the rows themselves, made on demand."""
        return self.geometry.rows


class Aggregated(NamedTuple):
    """What the rule makes of the rows that the defenses have left.

    Attributes:
        update_D: `[D]` the aggregate; None: nothing was left that the rule can aggregate.
        kept_C: `[C]` bool, which of the submitted rows are in it.
        metrics: how much of it came from attackers.
        stopped: why the run cannot go on, or None.
        skipped: why there is no update; empty if there is one.
    """

    update_D: Tensor | None
    kept_C: Tensor
    metrics: Metrics
    stopped: str | None = None
    skipped: str = ""


class Observer(Protocol):
    """Something that watches a federation: tracker, progress, checkpoints, pruning."""

    def start(self, federation: "Federation") -> None:
        """Called once before the first round of this process."""

    def round(self, federation: "Federation", report: RoundReport) -> None:
        """Called after every round; an exception ends the run."""


@dataclass
class FederationState:
    """Everything that a round depends on beside the configuration; tensors and plain values only.

    Attributes:
        round: the next communication round.
        global_D: `[D]` the global model.
        previous_D: `[D]` the global model of the round before.
        attack: the attack's memory.
        defenses: each defense's memory.
        server: moments of the server's optimizer.
        past: `reference_D`, the last aggregated update, once there was one.
        effect: the predicted effect of the attack on the parameters, once there was one.
        history: figures of every round so far.
        strongest: figures and parameters of the most successfully attacked model so far.
        stopped: what ended the run before its time, or None.
        reached: what `experiment.stop` waited for, once it was there.
        given_up: whether it was an observer that ended it: nobody asks for its model.
    """

    round: int
    global_D: Tensor
    previous_D: Tensor
    attack: State
    defenses: dict[str, State]
    server: dict[str, Tensor] = field(default_factory=dict)
    past: dict[str, Tensor] = field(default_factory=dict)
    effect: dict[str, Tensor] = field(default_factory=dict)
    history: list[Metrics] = field(default_factory=list)
    strongest: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    given_up: bool = False
    reached: str | None = None

    @property
    def over(self) -> bool:
        """Whether no round follows, however many are planned."""
        return bool(self.stopped or self.reached)

    def give_up(self, reason: str) -> None:
        """End the run after this round; an observer does, who has seen enough."""
        self.stopped, self.given_up = reason, True


def on_device(value: Any, device: torch.device) -> Any:
    """Nested mappings and lists with every tensor on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: on_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [on_device(item, device) for item in value]
    return value
