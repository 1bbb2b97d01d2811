"""MoNNA: the mean of the C - f rows nearest to a trusted vector.

References:
    Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust collaborative learning with linear gradient overhead", ICML
    2023, algorithm 1. There every peer trusts its own vector; at a server it is an update from the server's own samples.
"""

from dataclasses import replace
from typing import ClassVar, Self

from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._base import Aggregator
from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._krum import lowest
from fl_lightning.aggregators._multi_krum import mean_of
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, chosen
from fl_lightning.registry import ConfigError


def monna(updates_CD: Tensor, n_byzantine: int, trusted_D: Tensor) -> Tensor:
    """Mean of the C - f rows nearest to a trusted vector; among equals the lowest index first.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f.
        trusted_D: `[D]`; as printed, one of the rows.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f.

    Example:
        >>> import torch
        >>> monna(torch.tensor([[1.0], [2.0], [-9.0]]), 1, torch.tensor([2.0]))
        tensor([1.5000])
    """
    check_majority("MoNNA", len(updates_CD), n_byzantine)
    distances_C = Geometry(updates_CD).distances_from(trusted_D)
    return mean_of(updates_CD, lowest(distances_C, len(updates_CD) - n_byzantine), None)


class Monna(WeightedMean):
    """Mean, weighted where weights are given, of the C - f updates nearest to one that the server trusts.

    Attributes:
        n_byzantine: f.
        index: position of the trusted row among those of the round; that client may be malicious. None: the server trains on
            its own samples (`data.validation`).
    """

    name: ClassVar[str] = "monna"
    cites: ClassVar[tuple[str, ...]] = ("farhadkhani2023robust",)
    n_byzantine: Byzantine
    index: int | None = Field(default=None, ge=0)

    @property
    def permutation_invariant(self) -> bool:  # type: ignore[override]
        """Not where a position is trusted."""
        return self.index is None

    @property
    def translation_equivariant(self) -> bool:  # type: ignore[override]
        """Only where the trusted vector moves with the rows."""
        return self.index is not None

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]
        """Only where the trusted vector is scaled with the rows."""
        return self.index is not None

    @property
    def needs_samples(self) -> bool:  # type: ignore[override]
        """Where the server trains."""
        return self.index is None

    def check(self, n_clients: int) -> None:
        """C > 2f, and there is a trusted row."""
        check_majority("MoNNA", n_clients, self.n_byzantine)
        if self.index is not None and self.index >= n_clients:
            raise ValueError(f"MoNNA needs index < C, got index={self.index}, C={n_clients}")

    def before_mixing(self, geometry: Geometry, past: Past) -> tuple[Aggregator, Past]:
        """The trusted row stays as it was sent."""
        if self.index is None:
            return self, past
        row_D = geometry.rows[self.index]
        return replace(self, index=None), replace(past, trusted=lambda: row_D)

    def dropping(self, dropped_C: Tensor) -> Self:
        """The trusted row keeps its place among those that are left."""
        rule = self.without(int(dropped_C.sum()))
        if self.index is None or self.index >= len(dropped_C):
            return rule
        if bool(dropped_C[self.index]):
            raise ValueError(f"MoNNA's trusted row, index={self.index} of C={len(dropped_C)}, is among those removed")
        return replace(rule, index=int((~dropped_C[: self.index]).sum()))

    def cautions(self, n_clients: int) -> list[str]:
        """A client is trusted."""
        if self.index is None:
            return []
        return [f"monna trusts the client at position {self.index}: if it is malicious, it decides who is averaged"]

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The scores are the distances from the trusted vector."""
        if self.index is not None:
            distances_C = geometry.squared_distances[self.index].sqrt()
        elif past.trusted is not None:
            distances_C = geometry.distances_from(past.trusted())
        else:
            raise ConfigError(
                "monna needs samples at the server: set data.validation to their number, such as 100, or index"
            )
        nearest = lowest(distances_C, len(distances_C) - self.n_byzantine)
        return Weighed(chosen(len(distances_C), nearest, weights_C), distances_C)
