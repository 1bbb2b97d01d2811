"""Robust learning rate: coordinates on which too few clients agree move the other way.

References:
    Ozdayi, Kantarcioglu, Gel, "Defending against backdoors in federated learning with robust learning rate", AAAI 2021,
    equation 2.
"""

import warnings
from math import ceil
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._mean import Mean
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._signs import sign_sums, trained_columns
from fl_lightning.registry import Slot, Tunable


def check_rlr(n_clients: int, theta: int) -> None:
    """Raise ValueError unless 1 <= theta <= C: beyond it every coordinate is flipped in every round."""
    if not 1 <= theta <= n_clients:
        raise ValueError(f"RLR needs 1 <= theta <= C, got theta={theta}, C={n_clients}")


def rlr(updates_CD: Tensor, aggregate_D: Tensor, theta: int, *, trained: slice | None = None) -> Tensor:
    """The aggregate, turned round in every coordinate where |sum_i sign(x_i)| < theta.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        aggregate_D: `[D]` what another rule made of them.
        theta: how many votes must be left over, 1 to C.
        trained: columns that may be turned round, the first ones; None: all.

    Returns:
        `[D]` in the dtype of the aggregate.

    Raises:
        ValueError: theta out of range.

    Example:
        >>> rlr(torch.tensor([[1.0, 1.0], [2.0, -3.0], [3.0, 1.0]]), torch.tensor([2.0, -0.5]), 2)
        tensor([2.0000, 0.5000])
    """
    check_rlr(len(updates_CD), theta)
    trained = trained or slice(0, len(aggregate_D))
    turned_D = aggregate_D.clone()
    turned_D[trained] = torch.where(sign_sums(updates_CD[:, trained]).abs() < theta, -1, 1) * turned_D[trained]
    return turned_D


class Rlr(Aggregator):
    """Another rule's aggregate, turned round where too few clients agree on the sign.

    A defense against backdoors only: untargeted attackers turn it against the server. f attackers alone reach f votes and honest
    clients against them C - 2f, so that it is useful for f < theta <= C - 2f.

    Attributes:
        theta: how many votes must be left over; give either this or `share`.
        share: of the round's rows: theta = ceil(share * C).
        inner: the rule that aggregates.
    """

    name: ClassVar[str] = "rlr"
    cites: ClassVar[tuple[str, ...]] = ("ozdayi2021defending",)
    uses_past: ClassVar[bool] = True
    translation_equivariant: ClassVar[bool] = False

    theta: int | None = Field(default=None, ge=1)
    share: Annotated[float | None, Tunable(0.1, 0.9)] = Field(default=None, gt=0, le=1)
    inner: Annotated[Aggregator, Slot("aggregator")] = Field(default_factory=Mean)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.theta is None) == (self.share is None):
            raise ValueError(f"give either theta or share, got theta={self.theta}, share={self.share}")
        return self

    @property
    def robust(self) -> bool:  # type: ignore[override]
        """As the inner rule."""
        return self.inner.robust

    @property
    def permutation_invariant(self) -> bool:  # type: ignore[override]
        """As the inner rule."""
        return self.inner.permutation_invariant

    def votes(self, n_clients: int) -> int:
        """Theta for a round of `n_clients`."""
        return self.theta if self.theta is not None else ceil((self.share or 0) * n_clients - 1e-9)

    def tolerated(self, n_clients: int) -> int:
        """As the inner rule."""
        return self.inner.tolerated(n_clients)

    def check(self, n_clients: int) -> None:
        """1 <= theta <= C, and what the inner rule asks for."""
        check_rlr(n_clients, self.votes(n_clients))
        self.inner.check(n_clients)

    def resolved(self, n_clients: int) -> Self:
        """With the inner rule resolved."""
        inner = self.inner.resolved(n_clients)
        return self if inner is self.inner else self._with(inner)

    def without(self, removed: int) -> Self:
        """With the inner rule lowered."""
        inner = self.inner.without(removed)
        return self if inner is self.inner else self._with(inner)

    def dropping(self, dropped_C: Tensor) -> Self:
        """As the inner rule."""
        return self._with(self.inner.dropping(dropped_C))

    def _with(self, inner: Aggregator) -> Self:
        return type(self)(theta=self.theta, share=self.share, inner=inner)

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """Rows and scores of the inner rule."""
        past = past or Past()
        result = self.inner.aggregate(updates_CD, weights_C, **self.inner._told(past))
        trained = trained_columns(past.layout, updates_CD.shape[1])
        update_D = rlr(updates_CD, result.update, self.votes(len(updates_CD)), trained=trained)
        return result._replace(update=update_D)

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """As the inner rule."""
        return self.inner.shares(updates_CD, weights_C, result, **self.inner._told(past))

    def figures(self, geometry: Geometry, weights_C: Tensor | None, past: Past, poisoned_C: Tensor) -> dict[str, float]:
        """`flipped`: share of the parameters that move the other way."""
        rows_CT = geometry.rows[:, trained_columns(past.layout, geometry.dimension)]
        flipped = float((sign_sums(rows_CT).abs() < self.votes(len(rows_CT))).double().mean())
        if past.reference_D is None and flipped > 0.9:
            words = f"{flipped:.0%} of the parameters move against the clients' majority in the first round"
            warnings.warn(f"rlr: {words}: lower theta={self.votes(len(rows_CT))}", stacklevel=2)
        return {"flipped": flipped, **self.inner.figures(geometry, weights_C, past, poisoned_C)}
