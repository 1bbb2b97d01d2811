"""Multi-Krum: the mean of the updates with the best Krum scores.

References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient descent",
    NeurIPS 2017, section 5. The paper leaves the number m of averaged updates open; C - f is the largest that can be honest.
"""

from dataclasses import replace
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._krum import check_krum, krum_scores, lowest
from fl_lightning.aggregators._mean import mean
from fl_lightning.registry import component


def check_multi_krum(n_clients: int, n_byzantine: int, m: int | None) -> None:
    """Raise ValueError unless C > 2f + 2 and 1 <= m <= C - f."""
    check_krum(n_clients, n_byzantine, "Multi-Krum")
    if m is not None and not 1 <= m <= n_clients - n_byzantine:
        raise ValueError(f"Multi-Krum needs 1 <= m <= C - f, got m={m}, C={n_clients}, f={n_byzantine}")


def multi_krum(
    updates_CD: Tensor,
    n_byzantine: int,
    *,
    m: int | None = None,
    squared: bool = True,
    weights_C: Tensor | None = None,
) -> Tensor:
    """Mean of the m rows with the lowest Krum scores.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f + 2.
        m: how many rows are averaged, 1 to C - f; None: C - f.
        squared: sum squared distances or plain ones.
        weights_C: `[C]` weights of the mean; the selection ignores them.

    Returns:
        `[D]` the mean.

    Raises:
        ValueError: C <= 2f + 2, or m out of range.

    Example:
        >>> multi_krum(torch.tensor([[0.0], [1.0], [2.0], [3.0], [99.0]]), 1)
        tensor([1.5000])
    """
    return MultiKrum(n_byzantine=n_byzantine, m=m, squared=squared)(updates_CD, weights_C).update


@component
class MultiKrum(Aggregator):
    """Mean, weighted where weights are given, of the C - f updates with the best Krum scores."""

    name: ClassVar[str] = "multi_krum"
    n_byzantine: int = Field(ge=0)
    m: int | None = Field(default=None, ge=1)
    squared: bool = True
