"""Multi-metrics: Manhattan norm, Euclidean norm and cosine judge a row together, by how far it lies from the others in each."""

import torch
from torch import Tensor

from fl_lightning.defenses._angles import turns


def multi_metrics(differences_CF: Tensor) -> Tensor:
    """Squared scores t_i^T Cov(t)^+ t_i of the rows' summed differences in each metric; large = suspicious.

    Cov is taken with 1 / (C - 1) and inverted where it can be: columns that are equal for all rows tell nothing. The columns are
    scaled to unit deviation first, which leaves the score of a regular Cov as it is.

    Args:
        differences_CF: `[C, F]` t_if = sum_j |m_if - m_jf| for metric f.

    Returns:
        `[C]` float64.
    """
    t_CF = differences_CF.double().cpu()
    if len(t_CF) < 2:
        return torch.zeros(len(t_CF), dtype=torch.float64)
    std_F = t_CF.std(0)
    telling_F = std_F > 1e-12 * t_CF.abs().amax(0)
    scaled_CF = t_CF[:, telling_F] / std_F[telling_F]
    if not scaled_CF.shape[1]:
        return torch.zeros(len(t_CF), dtype=torch.float64)
    centred_CF = scaled_CF - scaled_CF.mean(0)
    covariance_FF = centred_CF.T @ centred_CF / (len(t_CF) - 1)
    inverse_FF = torch.linalg.pinv(covariance_FF, hermitian=True, rtol=1e-12)
    scores_C: Tensor = ((scaled_CF @ inverse_FF) * scaled_CF).sum(1).clamp(min=0)
    return scores_C


def printed_metrics(manhattan_C: Tensor, norms_C: Tensor, along_C: Tensor, length: float) -> Tensor:
    """`[C, 3]` t of the paper: summed differences of |x_i|_1, |x_i|_2 and cos(theta + x_i, theta).

    Args:
        manhattan_C: `[C]` sums of the rows' absolute entries.
        norms_C: `[C]` Euclidean norms.
        along_C: `[C]` products <x_i, theta>.
        length: |theta|.
    """
    metrics_C3 = torch.stack([manhattan_C.double(), norms_C.double(), turns(norms_C, along_C, length)], dim=1)
    return (metrics_C3[:, None] - metrics_C3).abs().sum(1)


def program_metrics(distances_CC: Tensor, manhattan_CC: Tensor, models_C: Tensor) -> Tensor:
    """`[C, 3]` t of the authors' program: sums over j of (1 - cos_ij)^2, |x_i - x_j|_1, |m_i - m_j| of whole models.

    Args:
        distances_CC: `[C, C]` 1 - cos of the models.
        manhattan_CC: `[C, C]` Manhattan distances.
        models_C: `[C]` norms of the models.
    """
    lengths_CC = (models_C[:, None] - models_C).abs()
    return torch.stack([distances_CC.square().sum(1), manhattan_CC.double().sum(1), lengths_CC.sum(1)], dim=1)
