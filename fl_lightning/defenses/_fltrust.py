"""FLTrust: the server trains on samples of its own, trusts updates as far as they point the same way, and sets their length."""

from typing import NamedTuple

import torch
from torch import Tensor


class Trust(NamedTuple):
    """How far rows are trusted.

    Attributes:
        trust_C: `[C]` from 0 to 1, max(0, cosine).
        scale_C: `[C]` factors |r| / n_i; 0 for a row of zeros.
        cosine_C: `[C]` cosines with the server's update r.
    """

    trust_C: Tensor
    scale_C: Tensor
    cosine_C: Tensor


def fltrust(along_C: Tensor, norms_C: Tensor, length: float) -> Trust:
    """Trust scores; the update is sum_i T_i (|r| / n_i) x_i / sum_i T_i with T_i = max(0, cos(x_i, r)).

    Args:
        along_C: `[C]` products <x_i, r> with the server's update r.
        norms_C: `[C]` norms n_i.
        length: |r|.

    Example:
        >>> fltrust(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([2.0, 4.0, 0.0]), 1.0).trust_C
        tensor([1., 0., 0.])
    """
    known_C = (norms_C > 0) & (torch.tensor(length, device=norms_C.device) > 0)
    safe_C = norms_C.clamp(min=1e-300)
    cosine_C = torch.where(known_C, along_C / (safe_C * max(length, 1e-300)), 0.0).clamp(-1, 1)
    return Trust(cosine_C.clamp(min=0), torch.where(known_C, length / safe_C, 0.0), cosine_C)
