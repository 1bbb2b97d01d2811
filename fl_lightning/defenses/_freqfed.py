"""FreqFed: low frequencies of the weights are clustered, and the majority stays."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.fft import dct, dctn
from torch import Tensor


def low_frequencies(rows_CD: Tensor, low: float = 0.5) -> Tensor:
    """`[C, F]` float64 on the CPU, the first floor(`low` D) coefficients of the rows' orthonormal DCT-II.

    Example:
        >>> low_frequencies(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), low=0.5)
        tensor([[2., 0.]], dtype=torch.float64)
    """
    spectrum = dct(rows_CD.double().cpu().numpy(), type=2, norm="ortho", axis=1)
    return torch.from_numpy(spectrum[:, : max(1, int(low * rows_CD.shape[1] + 1e-9))].copy())


def low_frequencies_of_tensors(rows_CD: Tensor, shapes: Sequence[tuple[int, ...]], low: float = 0.5) -> Tensor:
    """`[C, F]` the same for each tensor as a matrix: coefficients i, j of its 2-D DCT with i + j < `low` (rows + columns).

    Args:
        rows_CD: `[C, D]`, the tensors one after the other.
        shapes: of the tensors; from three dimensions on, the first stays and the others are one.
        low: 1/2 in the paper.
    """
    parts, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        flat = rows_CD[:, start : start + size].double().cpu().numpy()
        height = shape[0] if len(shape) > 1 else 1
        blocks = flat.reshape(len(flat), height, -1)
        spectrum = dctn(blocks, type=2, norm="ortho", axes=(1, 2))
        i, j = np.indices(spectrum.shape[1:])
        parts.append(spectrum[:, i + j < low * sum(spectrum.shape[1:])])
        start += size
    return torch.from_numpy(np.concatenate(parts, axis=1))
