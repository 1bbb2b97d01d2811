"""AlignIns: rows whose direction, as a whole and in the signs of their largest entries, is unusual among the rows."""

import torch
from torch import Tensor

from fl_lightning.defenses._spread import count, mz_scores


def direction(norms_C: Tensor, along_C: Tensor, length: float) -> Tensor:
    """`[C]` float64, cos(x_i, theta); 0 with a zero vector (then the criterion passes everybody).

    Args:
        norms_C: `[C]` norms of the updates.
        along_C: `[C]` products <x_i, theta>.
        length: |theta|.
    """
    known_C = (norms_C > 0) & (norms_C.new_tensor(length) > 0)
    return torch.where(known_C, along_C.double() / (norms_C.double() * length).clamp(min=1e-300), 0.0).clamp(-1, 1)


def principal_signs(updates_CD: Tensor, top: float = 0.3) -> Tensor:
    """`[C]` float64, share of a row's `top` largest entries whose sign is the majority's.

    p = sign(sum_i sign(x_i)); entries without a majority, p = 0, do not count; 1 where no large entry has a majority.

    Example:
        >>> principal_signs(torch.tensor([[3.0, 1.0], [2.0, 1.0], [-4.0, 1.0]]), top=0.5)
        tensor([1., 1., 0.], dtype=torch.float64)
    """
    signs_CD = updates_CD.sign()
    majority_D = signs_CD.sum(0).sign()
    columns_CF = updates_CD.abs().topk(count(top, updates_CD.shape[1]), dim=1, sorted=False).indices
    wanted_CF = majority_D[columns_CF]
    decided_CF = wanted_CF != 0
    agree_CF = decided_CF & (signs_CD.gather(1, columns_CF) == wanted_CF)
    decided_C = decided_CF.sum(1)
    return torch.where(decided_C > 0, agree_CF.sum(1).double() / decided_C.clamp(min=1), 1.0)


def alignins(direction_C: Tensor, signs_C: Tensor, lambda_c: float = 1.0, lambda_s: float = 1.0) -> Tensor:
    """`[C]` bool, MZ(direction) <= lambda_c and MZ(signs) <= lambda_s with MZ(v)_i = |v_i - median| / std.

    Args:
        direction_C: `[C]` cosines with the global model.
        signs_C: `[C]` shares of principal signs.
        lambda_c: bound for the direction.
        lambda_s: bound for the signs.
    """
    return (mz_scores(direction_C) <= lambda_c) & (mz_scores(signs_C) <= lambda_s)
