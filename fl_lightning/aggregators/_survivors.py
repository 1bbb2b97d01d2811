"""How much of every row survives a rule that keeps some of the values of each coordinate."""

import torch
from torch import Tensor

from fl_lightning.aggregators._order import ranked_blocks


def surviving_shares(updates_CD: Tensor, first: int, last: int) -> Tensor:
    """`[C]` share of each row in the values of ranks first to last, over all coordinates.

    Args:
        updates_CD: `[C, D]` finite.
        first: lowest surviving rank, 0 for the smallest value of a coordinate.
        last: highest surviving rank.
    """
    counts_C = torch.zeros(len(updates_CD), dtype=torch.float64)
    ranks = range(first, last + 1, max(1, last - first))
    for columns, bounds in ranked_blocks(updates_CD, ranks):
        counts_C += survivors(updates_CD[:, columns], bounds[0], bounds[-1], first, last - first + 1).cpu()
    return (counts_C / counts_C.sum()).to(updates_CD.device, torch.promote_types(updates_CD.dtype, torch.float32))


def survivors(block_CB: Tensor, low_B: Tensor, high_B: Tensor, first: Tensor | int, count: int) -> Tensor:
    """`[C]` number of each row's values among those of ranks first to first + count - 1; equal values share a place.

    Args:
        block_CB: `[C, B]` the values.
        low_B: `[B]` smallest surviving value.
        high_B: `[B]` largest surviving value.
        first: rank of the smallest surviving value, one for all or one a coordinate.
        count: how many survive a coordinate.
    """
    at_low, at_high = block_CB == low_B, block_CB == high_B
    between = (block_CB > low_B) & (block_CB < high_B)
    lows_B = at_low.sum(0)
    low_places_B = ((block_CB < low_B).sum(0) + lows_B - first).clamp(max=count)
    high_places_B = count - low_places_B - between.sum(0)
    shares = at_low * (low_places_B / lows_B) + between + at_high * (high_places_B / at_high.sum(0))
    return shares.sum(1)
