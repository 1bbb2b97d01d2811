"""What a defense is: a step between the clients' updates and the aggregator."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Auto, Geometry, Layout, Past, assumed
from fl_lightning.data import Samples
from fl_lightning.registry import Component, ConfigError

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
        clients_C: `[C]` int64, who sent the rows; None: 0 to C - 1 (read it by `clients_of`).
        population: number of clients N; None: as many as there are rows.
        layout: what the columns of the updates mean; None: all are parameters of one layer.
        train: `[D]` an update made by the server from samples with the clients' optimizer, batch size and epochs:
            `train(samples, purpose, steps=None)`; None: it cannot train.
        features: `[n, H]` inputs of the classifier of a model `[D]` on inputs `[n, ...]`; None: not known.
        geometry: of the rows passed, shared along the chain; None: none yet (read it by `geometry_of`).
        rounds: how many rounds the federation plans; None: not known.
        past: what the rule may know beside the rows; None: nothing.
        server_lr: by how much the server multiplies the aggregate; None: its step is not linear in it.
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
    clients_C: Tensor | None = None
    population: int | None = None
    layout: Layout | None = None
    train: Callable[..., Tensor] | None = None
    features: Callable[[Tensor, Tensor], Tensor] | None = None
    geometry: Geometry | None = None
    rounds: int | None = None
    server_lr: float | None = 1.0
    past: Past | None = None


def clients_of(updates_CD: Tensor, context: ServerContext) -> Tensor:
    """`[C]` int64 on the CPU: who sent the rows."""
    return torch.arange(len(updates_CD)) if context.clients_C is None else context.clients_C.cpu()


def population_of(updates_CD: Tensor, context: ServerContext) -> int:
    """Number of clients N."""
    return len(updates_CD) if context.population is None else context.population


def trained_columns(updates_CD: Tensor, context: ServerContext) -> slice:
    """The columns that are parameters; running statistics are neither noised, scaled up nor sign-flipped by anybody."""
    return slice(0, updates_CD.shape[1]) if context.layout is None else context.layout.trained


def trained_of(updates_CD: Tensor, context: ServerContext) -> Tensor:
    """`[C, T]` a view of the trained columns."""
    return updates_CD[:, trained_columns(updates_CD, context)]


def geometry_of(updates_CD: Tensor, context: ServerContext) -> Geometry:
    """The geometry of the rows: the shared one where the server keeps one, else a fresh one."""
    if context.geometry is not None:
        return context.geometry
    return Geometry(updates_CD, trained_columns(updates_CD, context).stop)


class Verdict(NamedTuple):
    """What a defense decided.

    Attributes:
        keep_C: `[C]` bool, the rows that may stay.
        weights_C: `[C]` the weights, changed where the defense reweighs.
        updates_CD: `[C, D]` the updates, changed by a transform and untouched by a detector; None: unchanged.
        scores_C: `[C]` suspicion, larger = more suspicious, or None.
        state: what to remember for the next round.
        metrics: the defense's own figures, logged under `defense/<label>/`.
        scale_C: `[C]` factors on the trained columns, applied after `updates_CD`; statistics get min(1, factor); None: 1.
        flagged_C: `[C]` bool, who looked suspicious, also where all did and therefore stay; None: those not kept.
    """

    keep_C: Tensor
    weights_C: Tensor
    updates_CD: Tensor | None = None
    scores_C: Tensor | None = None
    state: State = MappingProxyType({})
    metrics: Mapping[str, float] = MappingProxyType({})
    scale_C: Tensor | None = None
    flagged_C: Tensor | None = None


def applied(verdict: Verdict, updates_CD: Tensor, layout: Layout | None = None) -> Tensor:
    """`[C, D]` the rows after a verdict: those it gives, or the ones it was asked about, then its factors.

    The rows themselves come back, not a copy, where the verdict changes none.
    """
    rows_CD = updates_CD if verdict.updates_CD is None else verdict.updates_CD
    if verdict.scale_C is None:
        return rows_CD
    scale_C1 = verdict.scale_C.to(rows_CD)[:, None]
    trained = rows_CD.shape[1] if layout is None else layout.trained.stop
    if trained == rows_CD.shape[1]:
        return rows_CD * scale_C1
    scaled_CD = rows_CD * scale_C1.clamp(max=1)
    scaled_CD[:, :trained] = rows_CD[:, :trained] * scale_C1
    return scaled_CD


class Defense(Component, ABC):
    """A detector (drops rows) or a transform (changes them); several run in the order of the configuration.

    Norms, cosines and signs are those of the trained columns; running statistics of normalisation layers follow what is kept and
    weighted: they are never noised, scaled up or sign-flipped, which would make variances negative.

    Attributes:
        at_clients: whether the benign clients apply it to their own updates, before the attackers see any.
        on_empty: what is done when it would drop all rows: `keep_all` (it cannot tell) or `skip` (it trusts nobody: the round is
            skipped, the model stays).
        reads_rows: whether `apply` reads `updates_CD`. False: everything is taken from `context.geometry`, and `updates_CD` may
            be rows that earlier factors were not yet multiplied into; this spares passes over the matrix.
        needs_samples: whether the server needs validation samples.
        needs_classifier: whether the model must end in a linear layer.
        stateful: whether it remembers anything between rounds.
    """

    at_clients: ClassVar[bool] = False
    on_empty: ClassVar[Literal["keep_all", "skip"]] = "keep_all"
    reads_rows: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False
    needs_classifier: ClassVar[bool] = False
    stateful: ClassVar[bool] = False

    if TYPE_CHECKING:

        @property
        def n_byzantine(self) -> int | None:
            """How many rows of a round it takes to be malicious; a field of defenses that ask for it."""
            return None

        @property
        def malicious_too(self) -> bool:
            """Whether malicious clients apply it, too; a field of defenses at the clients."""
            return False
    else:
        n_byzantine, malicious_too = None, False

    @classmethod
    def acts_at(cls, hook: Literal["broadcast", "after_step", "finish"]) -> bool:
        """Whether it changes the model at a hook; most defenses do at none."""
        return getattr(cls, hook) is not getattr(Defense, hook)

    def resolved(self, n_clients: int) -> Self:
        """The defense with a number in place of `n_byzantine: auto`: a fifth of the rows of a round."""
        if not isinstance(self.n_byzantine, Auto):
            return self
        return replace(self, n_byzantine=assumed(self.n_byzantine, n_clients))  # type: ignore[call-arg]

    def check_rows(self, n_clients: int) -> None:
        """Refuse a number of rows a round that it cannot handle.

        Raises:
            ConfigError: it would remove all rows, and thus none.
        """
        n_byzantine = self.n_byzantine
        if n_byzantine is not None and not isinstance(n_byzantine, Auto) and n_byzantine >= n_clients:
            raise ConfigError(f"needs f < C, got f={n_byzantine}, C={n_clients}", "n_byzantine")

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

    def broadcast(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """The model that is sent to the clients, before they train, and the state; the global model unless a defense changes it.

        Updates are measured from what is broadcast, attackers see it, and the server's step starts from it.
        """
        return global_D, state

    def after_step(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """The global model after the server's step, and the state: clipping and noise that are due on the model."""
        return global_D, state

    def finish(self, global_D: Tensor, context: ServerContext, state: State) -> Tensor:
        """The global model after the last round: repair of the model itself."""
        return global_D


def detected(
    updates_CD: Tensor,
    context: ServerContext,
    flagged_C: Tensor,
    scores_C: Tensor | None,
    metrics: Mapping[str, float] | None = None,
) -> Verdict:
    """The verdict of a detector: flagged rows go; when all are flagged nothing can be told from them and all stay."""
    keep_C = torch.ones_like(flagged_C) if bool(flagged_C.all()) else ~flagged_C
    return Verdict(keep_C, context.weights_C, updates_CD, scores_C, {}, metrics or {}, None, flagged_C)


def fitting(aggregator: Aggregator, n_rows: int) -> Aggregator:
    """The rule as it is, or tolerating just as many fewer rows as it takes to accept `n_rows`: some were removed before.

    Raises:
        ValueError: the rule does not accept so few rows at all.
    """
    for removed in range(aggregator.n_byzantine or 0):
        try:
            aggregator.without(removed).check(n_rows)
        except ValueError:
            continue
        return aggregator.without(removed)
    least = aggregator.without(aggregator.n_byzantine or 0)
    least.check(n_rows)
    return least
