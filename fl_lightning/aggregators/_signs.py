"""Votes of the rows' signs, a block of columns at a time."""

import torch
from torch import Tensor

from fl_lightning.aggregators._layout import Layout
from fl_lightning.aggregators._threads import column_wise

BLOCK_ENTRIES = 400_000  # signs of a block stay in cache


def sign_sums(updates_CD: Tensor) -> Tensor:
    """`[D]` float32 sum of the rows' signs in every coordinate; zeros vote for nothing."""
    width = max(1, BLOCK_ENTRIES // len(updates_CD))

    def part(part_CD: Tensor) -> Tensor:
        return torch.cat([block.sign().float().sum(0) for block in torch.split(part_CD, width, 1)])

    return column_wise(part, updates_CD)


def agreeing(updates_CD: Tensor, direction_D: Tensor) -> Tensor:
    """`[C]` float64 share of each row in the votes that agree with a direction; equal shares where none does."""
    counts_C = torch.zeros(len(updates_CD), dtype=torch.float64, device=updates_CD.device)
    width = max(1, BLOCK_ENTRIES // len(updates_CD))
    for block_CB, signs_B in zip(
        torch.split(updates_CD, width, 1), torch.split(direction_D.sign(), width), strict=True
    ):
        counts_C += ((block_CB.sign() == signs_B) & (signs_B != 0)).sum(1)
    total = float(counts_C.sum())
    return counts_C / total if total else torch.full_like(counts_C, 1 / len(counts_C))


def trained_columns(layout: Layout | None, dimension: int) -> slice:
    """The columns of the parameters; all where the layout is not known."""
    return slice(0, dimension) if layout is None else layout.trained
