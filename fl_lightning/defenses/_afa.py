"""Adaptive federated averaging: rows unlike the weighted mean go turn by turn, and a client that often does is blocked."""

from typing import NamedTuple

import torch
from scipy.special import betainc
from torch import Tensor

from fl_lightning.defenses._spread import median


class Similar(NamedTuple):
    """What AFA decided.

    Attributes:
        keep_C: `[C]` bool, good rows.
        similarity_C: `[C]` float64, cosines with the last weighted mean.
    """

    keep_C: Tensor
    similarity_C: Tensor


def afa(
    squared_CC: Tensor,
    norms_C: Tensor,
    weights_C: Tensor,
    along_C: Tensor | None = None,
    length: float = 0.0,
    xi: float = 2.0,
    xi_step: float = 0.5,
) -> Similar:
    """Rows whose cosine with the weighted mean is no outlier among the good rows.

    Each turn: s_i = cos(v_i, mean of the good v with the weights); where the mean of s is below its median, rows below median -
    xi std go, otherwise rows above median + xi std; xi grows by xi_step; until a turn drops nobody, or would drop everybody.

    Args:
        squared_CC: `[C, C]` squared distances.
        norms_C: `[C]` norms of the updates.
        weights_C: `[C]` non-negative.
        along_C: `[C]` products <x_i, theta> when models theta + x_i are compared; None: updates.
        length: |theta|.
        xi: standard deviations in the first turn.
        xi_step: added each turn.
    """
    squared_CC, norms_C, weights_C = squared_CC.double().cpu(), norms_C.double().cpu(), weights_C.double().cpu()
    along_C = torch.zeros_like(norms_C) if along_C is None else along_C.double().cpu()
    keep_C = weights_C > 0
    away_C = torch.zeros_like(norms_C)
    for _ in range(len(norms_C) + 1):
        if not bool(keep_C.any()):
            break
        away_C = _distances_from_mean(squared_CC, norms_C, along_C, length, weights_C * keep_C)
        good = away_C[keep_C]
        middle, std = median(good), good.std(correction=0)
        # 1 - cos instead of cos: the same std, and small differences keep their digits
        outlier_C = away_C > middle + xi * std if good.mean() > middle else away_C < middle - xi * std
        dropped_C = keep_C & outlier_C & (std > 0)
        if not bool(dropped_C.any()) or bool((dropped_C == keep_C).all()):
            break
        keep_C = keep_C & ~dropped_C
        xi += xi_step
    return Similar(keep_C, 1 - away_C)


def _distances_from_mean(
    squared_CC: Tensor, norms_C: Tensor, along_C: Tensor, length: float, weights_C: Tensor
) -> Tensor:
    """`[C]` 1 - cos(theta + x_i, theta + sum_j a_j x_j), a the weights divided by their sum."""
    a_C = weights_C / weights_C.sum()
    inner = float(a_C @ squared_CC @ a_C) / 2
    squares_C = norms_C.square()
    excess_C = 2 * along_C + squares_C
    mean_excess = float(a_C @ excess_C) - inner
    models_C = (length**2 + excess_C).clamp(min=0).sqrt()
    mean_norm = max(0.0, length**2 + mean_excess) ** 0.5
    apart_C = (excess_C - mean_excess) / (models_C + mean_norm).clamp(min=1e-300)
    squared_C = (squared_CC @ a_C - inner).clamp(min=0)
    away_C = (squared_C - apart_C.square()).clamp(min=0) / (2 * models_C * mean_norm).clamp(min=1e-300)
    return torch.where(models_C * mean_norm > 0, away_C.clamp(max=2), 1.0)


def blocked(good_N: Tensor, bad_N: Tensor, bound: float = 0.95) -> Tensor:
    """`[N]` bool, P(p < 1/2) > bound under Beta(good, bad).

    Example:
        >>> blocked(torch.tensor([3.0, 3.0]), torch.tensor([8.0, 9.0]))
        tensor([False,  True])
    """
    return torch.from_numpy(betainc(good_N.double().cpu().numpy(), bad_N.double().cpu().numpy(), 0.5)) > bound
