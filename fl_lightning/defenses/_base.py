"""What a defense is: a step between the clients' updates and the aggregator."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.data import Samples
from fl_lightning.registry import Component

State = Mapping[str, Any]
"""What a method remembers between rounds: tensors and plain values, so that a checkpoint can hold it."""


@dataclass(frozen=True)
class ServerContext:
    """What the server knows when it looks at the updates of a round.

    Attributes:
        round: the communication round, from 0.
        global_D: `[D]` the model that the clients started from.
        previous_D: `[D]` the model of the round before (the same in round 0).
        aggregator: the rule that will follow.
        weights_C: `[C]` the clients' sample counts.
        validation: the server's own samples, or None.
        predict: scores `[n, K]` of a model `[D]` on inputs `[n, ...]`.
        losses: losses `[n]` of a model `[D]` on samples.
        gradient: gradient `[D]` of the mean loss of a model `[D]` on samples.
        generator: fresh random numbers for a purpose, keyed by seed and round.
        sample_rate: share of the population that takes part in a round.
    """

    round: int
    global_D: Tensor
    previous_D: Tensor
    aggregator: Aggregator
    weights_C: Tensor
    validation: Samples | None
    predict: Callable[[Tensor, Tensor], Tensor]
    losses: Callable[[Tensor, Samples], Tensor]
    gradient: Callable[[Tensor, Samples], Tensor]
    generator: Callable[[str], torch.Generator]
    sample_rate: float = 1.0


class Verdict(NamedTuple):
    """What a defense decided.

    Attributes:
        keep_C: `[C]` bool, the rows that may stay.
        weights_C: `[C]` the weights, changed where the defense reweighs.
        updates_CD: `[C, D]` the updates, changed by a transform and untouched by a detector.
        scores_C: `[C]` suspicion, larger = more suspicious, or None.
        state: what to remember for the next round.
        metrics: the defense's own figures, logged under `defense/<label>/`.
    """

    keep_C: Tensor
    weights_C: Tensor
    updates_CD: Tensor
    scores_C: Tensor | None = None
    state: State = MappingProxyType({})
    metrics: Mapping[str, float] = MappingProxyType({})


class Defense(Component, ABC):
    """A detector (drops rows) or a transform (changes them); several run in the order of the configuration.

    Attributes:
        at_clients: whether the benign clients apply it to their own updates, before the attackers see any.
    """

    at_clients: ClassVar[bool] = False

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """Refuse a server that the defense cannot work for.

        Args:
            aggregator: the server's rule.
            validation: whether the server has validation samples.

        Raises:
            ConfigError: naming what is missing.
        """

    def init(self) -> State:
        """State before the first round; empty unless the defense remembers something."""
        return {}

    @abstractmethod
    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Judge the updates of a round.

        Args:
            updates_CD: `[C, D]` finite updates; not modified.
            context: what the server knows.
            state: what `apply` returned in the round before.
        """


def detected(
    updates_CD: Tensor,
    context: ServerContext,
    flagged_C: Tensor,
    scores_C: Tensor | None,
    metrics: Mapping[str, float] | None = None,
) -> Verdict:
    """The verdict of a detector: flagged rows go; when all are flagged nothing can be told from them and all stay."""
    keep_C = torch.ones_like(flagged_C) if bool(flagged_C.all()) else ~flagged_C
    return Verdict(keep_C, context.weights_C, updates_CD, scores_C, {}, metrics or {})


def fitting(aggregator: Aggregator, n_rows: int) -> Aggregator:
    """The rule as it is, or tolerating just as many fewer rows as it takes to accept `n_rows`: some were removed before.

    Raises:
        ValueError: the rule does not accept so few rows at all.
    """
    for removed in range(getattr(aggregator, "n_byzantine", None) or 0):
        try:
            aggregator.without(removed).check(n_rows)
        except ValueError:
            continue
        return aggregator.without(removed)
    least = aggregator.without(getattr(aggregator, "n_byzantine", None) or 0)
    least.check(n_rows)
    return least
