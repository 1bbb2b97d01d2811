"""Smallest maximum eigenvalue averaging: the mean of the C - f rows that vary least along any direction.

References:
    Allouah, Guerraoui, Gupta, Pinot, Rizk, Voitovych, "Robust distributed learning: tight error bounds and breakdown point under
    data heterogeneity", and "On the privacy-robustness-utility trilemma in distributed learning", ICML 2023, section 4 (SMEA).
"""

from collections.abc import Iterator
from itertools import combinations, islice
from math import comb
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._multi_krum import mean_of
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean, chosen

MAX_SUBSETS = 200_000
"""Subsets that are tried at most: about a minute for twenty rows."""
BATCH = 4096
CLOSE = 1e-9  # eigenvalues that differ by less than this share tie: the lexicographically first set wins


def check_smea(n_clients: int, n_byzantine: int, max_subsets: int) -> None:
    """Raise ValueError unless C > 2f and there are not too many subsets."""
    check_majority("SMEA", n_clients, n_byzantine)
    subsets = comb(n_clients, n_byzantine)
    if subsets > max_subsets:
        raise ValueError(
            f"SMEA tries all subsets, at most {max_subsets}; C={n_clients}, f={n_byzantine} have {subsets}: use caf"
        )


def smea_rows(squared_CC: Tensor, n_byzantine: int, max_subsets: int = MAX_SUBSETS) -> tuple[Tensor, float]:
    """`[C - f]` indices of the rows whose covariance has the smallest largest eigenvalue, and that eigenvalue.

    Args:
        squared_CC: `[C, C]` squared distances.
        n_byzantine: f, with C > 2f.
        max_subsets: more are refused.

    Raises:
        ValueError: C <= 2f, or too many subsets.
    """
    n_rows = len(squared_CC)
    check_smea(n_rows, n_byzantine, max_subsets)
    best, rows = torch.inf, torch.arange(n_rows - n_byzantine)
    for sets in batches(n_rows, n_rows - n_byzantine):
        inner = squared_CC[sets[:, :, None], sets[:, None, :]]
        means = inner.mean(1)
        # H G_S H = -1/2 H d^2 H, without the products that cancel where the rows are far from the origin
        centred = (means[:, :, None] + means[:, None, :] - inner - means.mean(1)[:, None, None]) / 2
        largest = torch.linalg.eigvalsh(centred)[:, -1].clamp(min=0) / sets.shape[1]
        lowest = float(largest.min())
        if lowest < best * (1 - CLOSE):
            first = int((largest <= lowest * (1 + CLOSE)).int().argmax())
            best, rows = lowest, sets[first]
    return rows, best


def batches(n_rows: int, size: int) -> Iterator[Tensor]:
    """All subsets of a size in lexicographic order, some thousands at a time."""
    every = combinations(range(n_rows), size)
    while batch := list(islice(every, BATCH)):
        yield torch.tensor(batch)


def smea(updates_CD: Tensor, n_byzantine: int, *, max_subsets: int = MAX_SUBSETS) -> Tensor:
    """Mean of the C - f rows whose covariance has the smallest largest eigenvalue.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f.
        max_subsets: more are refused.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f, or too many subsets.

    Example:
        >>> smea(torch.tensor([[0.0], [1.0], [9.0]]), 1)
        tensor([0.5000])
    """
    rows, _ = smea_rows(Geometry(updates_CD).squared_distances, n_byzantine, max_subsets)
    return mean_of(updates_CD, rows, None)


class Smea(WeightedMean):
    """Mean, weighted where weights are given, of the C - f updates with the smallest largest eigenvalue of their covariance."""

    name: ClassVar[str] = "smea"
    cites: ClassVar[tuple[str, ...]] = ("allouah2023privacy",)
    scores_tell: ClassVar[bool] = True
    products_tell: ClassVar[bool] = True
    n_byzantine: Byzantine
    max_subsets: int = Field(default=MAX_SUBSETS, ge=1)

    def check(self, n_clients: int) -> None:
        """C > 2f, and not too many subsets."""
        check_smea(n_clients, self.n_byzantine, self.max_subsets)

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """No scores."""
        rows, _ = smea_rows(geometry.squared_distances, self.n_byzantine, self.max_subsets)
        return Weighed(chosen(len(geometry), rows, weights_C))
