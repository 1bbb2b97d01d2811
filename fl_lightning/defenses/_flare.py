"""FLARE: models whose inner representations of the server's samples are near those of many others weigh more."""

import torch
from torch import Tensor


def mmd2(features_CnH: Tensor, gamma: float | None = None) -> Tensor:
    r"""`[C, C]` float64, unbiased squared maximum mean discrepancies of sets of features, not below 0.

    $\overline{k(x, x')} + \overline{k(y, y')} - 2 \overline{k(x, y)}$ with $k = \exp(-\gamma |x - y|^2)$; a set's own means
    leave the diagonal out.

    Args:
        features_CnH: `[C, n, H]`, n at least 2.
        gamma: of the kernel; None: 1 / H.
    """
    n_sets, n, width = features_CnH.shape
    flat = features_CnH.double().reshape(n_sets * n, width)
    gamma = 1 / width if gamma is None else gamma
    kernel = (-gamma * torch.cdist(flat, flat).square()).exp().view(n_sets, n, n_sets, n)
    sums_CC = kernel.sum((1, 3))
    within_C = (sums_CC.diagonal() - n) / (n * (n - 1))
    mmd2_CC = (within_C[:, None] + within_C - 2 * sums_CC / n**2).clamp(min=0)
    return mmd2_CC.fill_diagonal_(0)


def votes(distances_CC: Tensor) -> Tensor:
    """`[C]` float64, how many others count a row among their floor(C / 2) nearest; ties: the lower index.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 3.0, 9.0])
        >>> votes((x[:, None] - x).abs())
        tensor([2., 3., 3., 0.], dtype=torch.float64)
    """
    n_rows = len(distances_CC)
    others_CC = distances_CC.double().clone().fill_diagonal_(torch.inf)
    nearest = others_CC.sort(dim=1, stable=True).indices[:, : n_rows // 2]
    counts_C = torch.zeros(n_rows, dtype=torch.float64, device=distances_CC.device)
    return counts_C.index_add_(0, nearest.flatten(), torch.ones(nearest.numel()).to(counts_C))


def flare(distances_CC: Tensor, tau: float = 1.0) -> Tensor:
    """`[C]` float64 weights, softmax of votes / (tau mean of the votes); equal for fewer than four rows.

    Args:
        distances_CC: `[C, C]` between the rows' representations.
        tau: temperature, > 0. A row without a vote keeps at least exp(-max / (tau mean)) of the largest weight.
    """
    if len(distances_CC) < 4:
        return torch.full((len(distances_CC),), 1 / len(distances_CC), dtype=torch.float64)
    counts_C = votes(distances_CC)
    return (counts_C / (tau * counts_C.mean())).softmax(0)
