"""SignGuard: rows of a usual length whose shares of positive, zero and negative entries lie in the largest cluster."""

import numpy as np
import torch
from sklearn.cluster import MeanShift, estimate_bandwidth
from torch import Tensor

from fl_lightning.defenses._spread import median


def sign_shares(rows_CF: Tensor) -> Tensor:
    """`[C, 3]` float64, shares of positive, zero and negative entries of the rows.

    Example:
        >>> sign_shares(torch.tensor([[1.0, -2.0, 0.0, 3.0]]))
        tensor([[0.5000, 0.2500, 0.2500]], dtype=torch.float64)
    """
    signs = [(rows_CF > 0), (rows_CF == 0), (rows_CF < 0)]
    return torch.stack([sign.double().mean(1) for sign in signs], dim=1)


def usual_lengths(norms_C: Tensor, low: float, high: float) -> Tensor:
    """`[C]` bool, norms from `low` to `high` times their median; all when the median is 0."""
    middle = median(norms_C)
    if middle == 0:
        return torch.ones_like(norms_C, dtype=torch.bool)
    return (norms_C >= low * middle) & (norms_C <= high * middle)


def largest_cluster(features_CF: Tensor, quantile: float = 0.5) -> Tensor:
    """`[C]` bool on the CPU, the largest cluster by mean shift; of equally large ones the one with the lowest row.

    Args:
        features_CF: `[C, F]`.
        quantile: of the distances, for the bandwidth.
    """
    points = features_CF.double().cpu().numpy()
    bandwidth = estimate_bandwidth(points, quantile=quantile) if len(points) > 1 else 0.0
    if bandwidth <= 1e-12:
        return torch.ones(len(points), dtype=torch.bool)
    labels = MeanShift(bandwidth=bandwidth).fit(points).labels_
    sizes = np.bincount(labels)
    winner = next(label for label in labels if sizes[label] == sizes.max())
    return torch.from_numpy(labels == winner)
