"""Momentum at the clients: what they send varies less from round to round, so that attacks inside of the variance stand out."""

import torch
from torch import Tensor


def momentum(memory_CD: Tensor, seen_C: Tensor, updates_CD: Tensor, beta: float) -> Tensor:
    """m_i <- beta m_i + (1 - beta) x_i, and m_i = x_i for who was never there before.

    Args:
        memory_CD: `[C, D]` the momenta so far.
        seen_C: `[C]` bool, who has one.
        updates_CD: `[C, D]` updates x of this round.
        beta: from 0 to 1 (exclusive).

    Example:
        >>> momentum(torch.tensor([[1.0], [9.0]]), torch.tensor([True, False]), torch.tensor([[3.0], [3.0]]), 0.5)
        tensor([[2.],
                [3.]])
    """
    return torch.where(seen_C[:, None], torch.lerp(updates_CD, memory_CD, beta), updates_CD)
