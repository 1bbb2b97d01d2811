r"""Cosine distances that keep their digits where the vectors nearly coincide.

With norms n and squared distances d^2, $1 - \cos_{ij} = (d_{ij}^2 - (n_i - n_j)^2) / (2 n_i n_j)$:
nothing near 1 is subtracted from 1.
"""

import torch
from torch import Tensor


def cosine_distances(squared_CC: Tensor, norms_C: Tensor) -> Tensor:
    """`[C, C]` float64, 1 - cos of all pairs; 1 (a cosine of 0) with a row of zeros; 0 on the diagonal.

    Args:
        squared_CC: `[C, C]` exact squared Euclidean distances.
        norms_C: `[C]` Euclidean norms.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
        >>> cosine_distances(torch.cdist(x, x).square(), x.norm(dim=1)).round(decimals=4)[0]
        tensor([0., 1., 2.], dtype=torch.float64)
    """
    norms_C = norms_C.double()
    return _away(squared_CC.double(), norms_C[:, None] - norms_C, norms_C)


def model_distances(squared_CC: Tensor, norms_C: Tensor, along_C: Tensor, length: float) -> Tensor:
    """`[C, C]` float64, 1 - cos of the models theta + x_i.

    Their distances are those of the updates, and m_i - m_j = (2 <x_i - x_j, theta> + n_i^2 - n_j^2) / (m_i + m_j).

    Args:
        squared_CC: `[C, C]` exact squared distances of the updates.
        norms_C: `[C]` norms of the updates.
        along_C: `[C]` products <x_i, theta>.
        length: |theta|.
    """
    norms_C, along_C = norms_C.double(), along_C.double()
    models_C = model_norms(norms_C, along_C, length)
    excess_C = 2 * along_C + norms_C.square()
    apart_CC = (excess_C[:, None] - excess_C) / (models_C[:, None] + models_C).clamp(min=1e-300)
    return _away(squared_CC.double(), apart_CC, models_C)


def model_norms(norms_C: Tensor, along_C: Tensor, length: float) -> Tensor:
    """`[C]` float64, |theta + x_i|."""
    return (length**2 + 2 * along_C.double() + norms_C.double().square()).clamp(min=0).sqrt()


def turns(norms_C: Tensor, along_C: Tensor, length: float) -> Tensor:
    """`[C]` float64, 1 - cos(theta + x_i, theta); 1 where either is zero."""
    norms_C, along_C = norms_C.double(), along_C.double()
    models_C = model_norms(norms_C, along_C, length)
    longer_C = (2 * along_C + norms_C.square()) / (models_C + length).clamp(min=1e-300)
    away_C = (norms_C.square() - longer_C.square()).clamp(min=0) / (2 * models_C * length).clamp(min=1e-300)
    return torch.where((models_C > 0) & (torch.tensor(length) > 0), away_C.clamp(max=2), 1.0)


def _away(squared_CC: Tensor, apart_CC: Tensor, norms_C: Tensor) -> Tensor:
    products_CC = norms_C[:, None] * norms_C
    away_CC = (squared_CC - apart_CC.square()).clamp(min=0) / (2 * products_CC).clamp(min=1e-300)
    return torch.where(products_CC > 0, away_CC.clamp(max=2), 1.0).fill_diagonal_(0)
