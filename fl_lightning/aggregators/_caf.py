"""Covariance-bound agnostic filter: rows lose weight along the direction of largest variance until few enough are left.

References:
    Allouah, Guerraoui, Stephan, "Towards trustworthy federated learning with untrusted participants", ICML 2025,
    algorithm 2 (CAF).
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fl_lightning.aggregators._byzantine import Byzantine, check_majority
from fl_lightning.aggregators._geometry import Geometry
from fl_lightning.aggregators._past import Past
from fl_lightning.aggregators._weighted_mean import Weighed, WeightedMean


class Filtered(NamedTuple):
    """What the filter did.

    Attributes:
        shares: `[C]` of the rows in the mean with the smallest variance seen.
        left: `[C]` weights in [0, 1] after the last turn.
        variances: the largest eigenvalue in every turn.
    """

    shares: Tensor
    left: Tensor
    variances: list[float]


def caf_shares(squared_CC: Tensor, n_byzantine: int) -> Filtered:
    """The filter on the squared distances of the rows.

    Starting from c = 1, while sum c > C - 2f: with mu and Sigma the mean and covariance under c, v the top eigenvector of Sigma
    and t_i = <x_i - mu, v>^2, c_i <- c_i (1 - t_i / max t). At least one c becomes 0 a turn.

    Args:
        squared_CC: `[C, C]` squared distances, float64.
        n_byzantine: f, with C > 2f.

    Raises:
        ValueError: C <= 2f.
    """
    n_rows = len(squared_CC)
    check_majority("CAF", n_rows, n_byzantine)
    left_C = torch.ones(n_rows, dtype=torch.float64)
    best_C, variances = left_C / n_rows, list[float]()
    while float(left_C.sum()) > n_rows - 2 * n_byzantine + 1e-9:
        alive = (left_C > 0).nonzero().flatten()  # rows of weight 0 would take all digits from the others
        shares = left_C[alive] / left_C[alive].sum()
        inner = squared_CC[alive][:, alive]
        means = inner @ shares
        centred = (means[:, None] + means - inner - shares @ means) / 2
        roots = shares.sqrt()
        eigenvalues, vectors = torch.linalg.eigh(roots[:, None] * centred * roots)
        variance = max(0.0, float(eigenvalues[-1]))
        if not variances or variance < min(variances):
            best_C = torch.zeros_like(left_C).index_copy_(0, alive, shares)
        variances.append(variance)
        along = (centred @ (roots * vectors[:, -1])).square()
        if variance <= torch.finfo(torch.float64).eps ** 2 * float(inner.max()) or not float(along.max()) > 0:
            break
        left_C[alive] *= 1 - along / along.max()
    return Filtered(best_C, left_C, variances)


def caf(updates_CD: Tensor, n_byzantine: int) -> Tensor:
    """Mean of the rows with the weights at which their covariance was smallest.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        n_byzantine: f, with C > 2f; 0 gives the mean.

    Returns:
        `[D]` in the dtype of the updates.

    Raises:
        ValueError: C <= 2f.

    Example:
        >>> caf(torch.tensor([[0.0], [1.0], [2.0], [99.0]]), 1)
        tensor([1.0068])
    """
    geometry = Geometry(updates_CD)
    return geometry.weighted_sum(caf_shares(geometry.squared_distances, n_byzantine).shares)


class Caf(WeightedMean):
    """Mean of the updates after those that vary most along one direction have lost their weight; sample counts are ignored."""

    name: ClassVar[str] = "caf"
    cites: ClassVar[tuple[str, ...]] = ("allouah2025towards",)
    scores_tell: ClassVar[bool] = True
    products_tell: ClassVar[bool] = True
    n_byzantine: Byzantine

    def check(self, n_clients: int) -> None:
        """C > 2f."""
        check_majority("CAF", n_clients, self.n_byzantine)

    def weigh(self, geometry: Geometry, past: Past, weights_C: Tensor | None) -> Weighed:
        """The scores are the weights that were lost."""
        filtered = caf_shares(geometry.squared_distances, self.n_byzantine)
        return Weighed(filtered.shares, 1 - filtered.left)
