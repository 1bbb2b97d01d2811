"""Clipped clustering: two clusters by angle, the larger stays, and no row is longer than the median length of all rounds."""

import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from fl_lightning.defenses._clusters import TOO_FEW


def larger_of_two(distances_CC: Tensor) -> Tensor:
    """`[C]` bool on the CPU, the larger of two clusters by average linkage; of equal ones the tighter, then that of row 0.

    Args:
        distances_CC: `[C, C]` symmetric, such as 1 - cos.

    Returns:
        All rows for fewer than four.

    Example:
        >>> x = torch.tensor([0.0, 0.1, 0.2, 1.0])
        >>> larger_of_two((x[:, None] - x).abs())
        tensor([ True,  True,  True, False])
    """
    distances_CC = distances_CC.double().cpu()
    if len(distances_CC) < TOO_FEW:
        return torch.ones(len(distances_CC), dtype=torch.bool)
    model = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage="average")
    first_C = torch.from_numpy(model.fit_predict(distances_CC.numpy()) == 0)
    first_C = first_C if bool(first_C[0]) else ~first_C

    def order(group_C: Tensor) -> tuple[int, float]:
        members, n = distances_CC[group_C][:, group_C], int(group_C.sum())
        return -n, float(members.sum()) / max(1, n * (n - 1))

    return min(first_C, ~first_C, key=order)
