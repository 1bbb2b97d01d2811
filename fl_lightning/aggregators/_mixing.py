"""Pre-aggregators: rows are scaled or mixed before a rule sees them, `x' = W x`.

`aggregator: {name: krum, n_byzantine: 2, pre: [arc, nnm]}` clips, mixes, and hands the rows to Krum. Every step is a
non-negative matrix, so that a chain costs nothing beside the rule's own two passes over the updates.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._byzantine import Auto, Tolerant, assumed
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import WeightedMean, influence_of, on_unmade
from fl_lightning.registry import Component, ConfigError, Slot


class PreAggregator(Tolerant, Component, ABC):
    """A step between the updates and the rule: rows times a matrix that is diagonal, or whose rows sum to 1.

    Attributes:
        translation_equivariant: as of a rule.
        permutation_invariant: as of a rule.
        returns_equal_rows: as of a rule.
        homogeneous: as of a rule.
        bounds: whether it alone keeps the mean from being moved far by the malicious rows.
        scores_follow: whether a rule's score of an output row says something about the rows in it.
        needs_n_byzantine: whether it cannot do without f.
        needs_distances: whether it asks for the distances between all rows.
    """

    translation_equivariant: ClassVar[bool] = True
    permutation_invariant: ClassVar[bool] = True
    returns_equal_rows: ClassVar[bool] = True
    homogeneous: ClassVar[bool] = True
    bounds: ClassVar[bool] = False
    scores_follow: ClassVar[bool] = True
    needs_n_byzantine: ClassVar[bool] = False
    needs_distances: ClassVar[bool] = False

    @abstractmethod
    def mix(self, geometry: Geometry, past: Past) -> Tensor:
        """`[R, C]` float64 on the CPU: the matrix W."""

    def rows(self, n_clients: int) -> int:
        """How many rows come out of `n_clients`."""
        return n_clients

    def check(self, n_clients: int) -> None:
        """Refuse a number of rows.

        Raises:
            ValueError: with the violated condition and its numbers.
        """

    def sizes(self, matrix_RC: Tensor) -> Tensor | None:
        """`[R]` how many rows each output row stands for, or None where each stands for one."""
        return None

    def figures(self, matrix_RC: Tensor, poisoned_C: Tensor) -> Mapping[str, float]:
        """Its own figures about a round."""
        return {}

    def caution(self, n_clients: int, n_byzantine: int | None) -> str | None:
        """What is unwise about the setting, in a sentence."""
        return None

    def extra(self, n_clients: int) -> int:
        """How many output rows beyond f may be malicious because of the step itself."""
        return 0

    def without(self, removed: int) -> Self:
        """The same step after `removed` suspicious rows are gone."""
        if self.n_byzantine is None or isinstance(self.n_byzantine, Auto):
            return self
        return replace(self, n_byzantine=max(0, self.n_byzantine - removed))  # type: ignore[call-arg]

    def resolved(self, n_clients: int) -> Self:
        """The step with a number in place of its own `n_byzantine: auto`."""
        if not isinstance(self.n_byzantine, Auto):
            return self
        return replace(self, n_byzantine=assumed(self.n_byzantine, n_clients))  # type: ignore[call-arg]

    def inheriting(self, n_byzantine: int | None) -> Self:
        """The step with the rule's f, unless it has its own."""
        asks = any(field.name == "n_byzantine" for field in fields(self))
        if not asks or self.n_byzantine is not None or n_byzantine is None:
            return self
        return replace(self, n_byzantine=n_byzantine)  # type: ignore[call-arg]


class Chain(NamedTuple):
    """What a chain of steps makes of the rows.

    Attributes:
        geometry: of the R output rows.
        matrix: `[R, C]` the product of the steps' matrices.
        weights: `[R]` weights of the output rows, or None: equal.
    """

    geometry: Geometry
    matrix: Tensor
    weights: Tensor | None


class Mixed(Aggregator):
    """A rule on rows that pre-aggregators have scaled or mixed; the loader makes it of the key `pre`.

    Attributes:
        rule: the rule.
        pre: the steps before it, in order; f is the rule's where they give none.
    """

    uses_past: ClassVar[bool] = True

    rule: Annotated[Aggregator, Slot("aggregator")]
    pre: tuple[Annotated[PreAggregator, Slot("pre_aggregator")], ...]

    def __post_init__(self) -> None:
        if isinstance(self.rule, Mixed) or not self.pre:
            raise ConfigError("needs a rule and at least one pre-aggregator", "pre")
        for step in self.steps:
            if step.needs_n_byzantine and step.n_byzantine is None:
                raise ConfigError(f"{step.name} needs n_byzantine, as {self.rule.name} has none", "pre")

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as `arc-nnm-krum`."""
        return "-".join([*(step.name for step in self.pre), self.rule.name])

    @property
    def n_byzantine(self) -> int | None:
        """The rule's."""
        return self.rule.n_byzantine

    @property
    def steps(self) -> tuple[PreAggregator, ...]:
        """The pre-aggregators with their f."""
        return tuple(step.inheriting(self.n_byzantine) for step in self.pre)

    def to_dict(self) -> dict[str, Any]:
        """The rule's mapping with the key `pre`."""
        return self.rule.to_dict() | {"pre": [step.to_dict() for step in self.pre]}

    @property
    def robust(self) -> bool:  # type: ignore[override]
        """Where the rule is, or a step bounds every row."""
        return self.rule.robust or any(step.bounds for step in self.pre)

    @property
    def translation_equivariant(self) -> bool:  # type: ignore[override]
        """Where all parts are."""
        return self.rule.translation_equivariant and all(step.translation_equivariant for step in self.pre)

    @property
    def permutation_invariant(self) -> bool:  # type: ignore[override]
        """Where all parts are."""
        return self.rule.permutation_invariant and all(step.permutation_invariant for step in self.pre)

    @property
    def returns_equal_rows(self) -> bool:  # type: ignore[override]
        """Where all parts are."""
        return self.rule.returns_equal_rows and all(step.returns_equal_rows for step in self.pre)

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]
        """Where all parts are."""
        return self.rule.homogeneous and all(step.homogeneous for step in self.pre)

    @property
    def needs_samples(self) -> bool:  # type: ignore[override]
        """Where the rule does."""
        return self.rule.needs_samples

    def check(self, n_clients: int) -> None:
        """Every step's condition, then the rule's on the rows that come out."""
        n_rows = n_clients
        for step in self.steps:
            step.check(n_rows)
            n_rows = step.rows(n_rows)
        try:
            self.rule.check(n_rows)
        except ValueError as error:
            raise ValueError(str(error) if n_rows == n_clients else f"{error}, made of {n_clients} updates") from None

    def rows(self, n_clients: int) -> int:
        """How many rows reach the rule."""
        for step in self.steps:
            n_clients = step.rows(n_clients)
        return n_clients

    def tolerated(self, n_clients: int) -> int:
        """The least that any part tolerates."""
        counts = [step.n_byzantine for step in self.steps if step.n_byzantine is not None]
        if self.rule.robust:
            counts.append(self.rule.tolerated(self.rows(n_clients)) - sum(step.extra(n_clients) for step in self.pre))
        return max(0, min([*counts, (n_clients - 1) // 2]))

    def resolved(self, n_clients: int) -> Self:
        """With numbers in the steps and in the rule."""
        steps = tuple(step.resolved(n_clients) for step in self.pre)
        mixed = self if steps == self.pre else self._parts(self.rule, steps)
        return super(Mixed, mixed).resolved(n_clients)

    def assuming(self, n_byzantine: int) -> Self:
        """With another f in the rule."""
        return self._parts(self.rule.assuming(n_byzantine), self.pre)

    def without(self, removed: int) -> Self:
        """Fewer in the rule and in every step."""
        if not removed:
            return self
        return self._parts(self.rule.without(removed), tuple(step.without(removed) for step in self.pre))

    def dropping(self, dropped_C: Tensor) -> Self:
        """As the rule."""
        return self._parts(self.rule.dropping(dropped_C), self.without(int(dropped_C.sum())).pre)

    def _parts(self, rule: Aggregator, pre: tuple[PreAggregator, ...]) -> Self:
        return type(self)(rule=rule, pre=pre)

    def chain(self, geometry: Geometry, weights_C: Tensor | None, past: Past) -> Chain:
        """The steps, one after the other.

        Weights follow by the mean over what is mixed: by W itself a clipped row would count for less twice.
        """
        matrix = torch.eye(len(geometry), dtype=torch.float64)
        weights = None if weights_C is None else weights_C.to("cpu", torch.float64)
        for step in self.steps:
            mixing = step.mix(geometry, past)
            geometry, matrix = geometry.mix(mixing), mixing @ matrix
            sizes = step.sizes(mixing)
            if weights is None and sizes is None:
                continue
            weights = torch.ones(mixing.shape[1], dtype=torch.float64) if weights is None else weights
            diagonal = len(mixing) == len(weights) and torch.equal(mixing, mixing.diagonal().diag())
            weights = weights if diagonal else mixing / mixing.sum(1, keepdim=True) @ weights
            weights = weights if sizes is None else weights * sizes
        return Chain(geometry, matrix, weights)

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """Rows and scores are those of the updates, through the matrix."""
        return self.combine(self._geometry(updates_CD), weights_C, past or Past())

    def _geometry(self, updates_CD: Tensor) -> Geometry:
        """What is measured once; a step or rule that needs distances gives the norms to all others."""
        follow = isinstance(self.rule, WeightedMean) or any(step.needs_distances for step in self.pre)
        return Geometry(updates_CD, products_follow=follow)

    def on(self, geometry: Geometry, weights_C: Tensor | None = None, *, past: Past | None = None) -> Aggregate:
        """As the call, without making rows that nothing needs."""
        return on_unmade(self, geometry, weights_C, past) or super().on(geometry, weights_C, past=past)

    def combine(self, geometry: Geometry, weights_C: Tensor | None, past: Past) -> Aggregate:
        """`aggregate` on rows whose geometry is known, perhaps not yet made themselves."""
        rule, past = self.rule.before_mixing(geometry, past)
        mixed = self.chain(geometry, weights_C, past)
        if isinstance(rule, WeightedMean):
            result = rule.combine(mixed.geometry, mixed.weights, past)
        else:
            result = rule.aggregate(mixed.geometry.rows, mixed.weights, **rule._told(past))
        towards_CR = mixed.matrix.T
        device, scores_C = result.update.device, None
        if result.scores is not None and all(step.scores_follow for step in self.pre):
            inside_C = towards_CR.sum(1)
            scores_C = (towards_CR @ result.scores.cpu().double() / inside_C.clamp(min=1e-300)).to(result.scores)
            scores_C[(inside_C == 0).to(device)] = torch.inf  # clipped to nothing
        kept_C = towards_CR @ result.kept.cpu().double() > 0
        return Aggregate(result.update, kept_C.to(device), scores_C)

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """The rule's shares of the output rows, through the matrix."""
        geometry = self._geometry(updates_CD)
        rule, past = self.rule.before_mixing(geometry, past or Past())
        mixed = self.chain(geometry, weights_C, past)
        if isinstance(rule, WeightedMean):
            coefficients = rule.coefficients(mixed.geometry, past, mixed.weights)[: len(mixed.geometry)].abs()
        else:
            coefficients = rule.shares(mixed.geometry.rows, mixed.weights, None, **rule._told(past)).cpu().double()
        return influence_of(mixed.matrix.T @ coefficients, updates_CD)

    def figures(
        self, geometry: Geometry, weights_C: Tensor | None, past: Past, poisoned_C: Tensor
    ) -> Mapping[str, float]:
        """The steps' own figures."""
        figures = dict[str, float]()
        if all(type(step).figures is PreAggregator.figures for step in self.pre):
            return figures
        for step in self.steps:
            mixing = step.mix(geometry, past)
            figures |= step.figures(mixing, poisoned_C)
            geometry, poisoned_C = geometry.mix(mixing), (mixing @ poisoned_C.cpu().double()) > 0
        return figures

    def cautions(self, n_clients: int) -> list[str]:
        """What is unwise about the settings."""
        words = []
        for step in self.steps:
            words.append(step.caution(n_clients, step.n_byzantine))
            n_clients = step.rows(n_clients)
        return [word for word in words if word]
