"""What Fang's attacks leave behind in the updates: a common direction, and values that are always cut off.

References:
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, sections 3.1.3, 3.2.3, 3.3 and 4.
"""

import torch
from torch import Tensor

from fl_lightning.aggregators._order import ranked_blocks
from fl_lightning.aggregators._survivors import survivors

COLUMNS = 32_768  # a block of this many columns of 50 rows stays in cache
NEGLIGIBLE = 1e-3


def sign_correlation(updates_CD: Tensor, selected: int, negligible: float = NEGLIGIBLE) -> Tensor:
    r"""Pearson correlation of every row's signs with the signs of one row.

    $\\rho_i = \\mathrm{corr}(\\mathrm{sgn}\\, u_i, \\mathrm{sgn}\\, u_{sel})$ over all coordinates. Corrected here: a change
    below `negligible` of the row's root mean square counts as none. Crafted copies differ by tiny noise, whose sign in
    coordinates that nobody moved would otherwise pull their correlation down to 0.9.

    Args:
        updates_CD: `[C, D]` finite.
        selected: index of the pre-aggregated row.
        negligible: at least 0; 0 is the printed formula.

    Returns:
        `[C]` float64 in [-1, 1]; against a constant sign vector 0, or 1 for an equal one.

    Example:
        >>> sign_correlation(torch.tensor([[2.0, 1.0, -1.0, 0.0], [1.0, -3.0, -1.0, 0.0]]), 0)
        tensor([1.0000, 0.4545], dtype=torch.float64)
    """
    n_rows, n_columns = updates_CD.shape
    limits_C1 = negligible * updates_CD.norm(dim=1, keepdim=True) / max(1, n_columns) ** 0.5
    sums_C, counts_C, products_C, unequal_C = updates_CD.new_zeros(4, n_rows, dtype=torch.float64)
    for block_CB in torch.split(updates_CD, COLUMNS, dim=1):
        signs_CB = block_CB.sign()
        if negligible:
            signs_CB *= block_CB.abs() > limits_C1
        sums_C += signs_CB.sum(1)
        counts_C += signs_CB.count_nonzero(1)
        products_C += signs_CB @ signs_CB[selected]
    unequal_C = counts_C + counts_C[selected] - 2 * products_C
    variances_C = counts_C - sums_C.square() / n_columns
    covariances_C = products_C - sums_C * sums_C[selected] / n_columns
    scale_C = (variances_C * variances_C[selected]).clamp(min=0).sqrt()
    constant_C = scale_C <= 1e-9 * n_columns
    return torch.where(constant_C, (unequal_C == 0).double(), covariances_C / scale_C.clamp(min=1e-300)).clamp(-1, 1)


def distances_to(updates_CD: Tensor, selected: int) -> Tensor:
    """`[C]` float64: every row's Euclidean distance to one row, exactly 0 for its copies."""
    squares_C = torch.zeros(len(updates_CD), dtype=torch.float64, device=updates_CD.device)
    for block_CB in torch.split(updates_CD, COLUMNS, dim=1):
        block_CB = block_CB.to(torch.promote_types(block_CB.dtype, torch.float32))
        squares_C += torch.linalg.vector_norm(block_CB - block_CB[selected], dim=1).double().square()
    return squares_C.sqrt()


def near_copies(distances_C: Tensor, near: float) -> Tensor:
    """The rows around distance 0 beyond which a wide void lies.

    With the distances in ascending order, the first k rows are copies of one another if the k-th is at most `near` times the
    (k+1)-th. Clients never agree so closely: even two that hold the same class alone train on samples of their own.

    Args:
        distances_C: `[C]` distances to one of the rows, its own 0 included.
        near: in [0, 1).

    Returns:
        `[C]` bool; the largest such group of at least two and at most half of the rows, or nobody.

    Example:
        >>> near_copies(torch.tensor([0.0, 1e-3, 0.8, 1e-3, 0.7, 0.9]), 0.02)
        tensor([ True,  True, False,  True, False, False])
        >>> near_copies(torch.tensor([0.0, 0.1, 0.8, 0.6, 0.7, 0.9]), 0.02).any()
        tensor(False)
    """
    ordered_C, rows = distances_C.sort()
    half = len(ordered_C) // 2
    inner, outer = ordered_C[1:half], ordered_C[2 : half + 1]
    ends = ((inner <= near * outer) & (outer > 0)).nonzero()
    count = int(ends[-1]) + 2 if len(ends) else 0
    return torch.zeros_like(distances_C, dtype=torch.bool).index_fill_(0, rows[:count], True)


def survival(updates_CD: Tensor, first: int, last: int) -> Tensor:
    """Share of the coordinates in which each row's value lies among ranks first to last; equal values share a place.

    Coordinates whose middle values are all zero are left out: nobody moved them, and an attacker keeps them unchanged. As
    updates are differences to the broadcast model, such zeros are exact, whatever the precision.

    Args:
        updates_CD: `[C, D]` finite.
        first: lowest surviving rank, 0 for the smallest value of a coordinate.
        last: highest surviving rank.

    Returns:
        `[C]` float64 in [0, 1]; all equal where no coordinate moved.
    """
    places = last - first + 1
    counts_C = torch.zeros(len(updates_CD), dtype=torch.float64, device=updates_CD.device)
    counted = 0
    for columns, bounds in ranked_blocks(updates_CD, range(first, last + 1, max(1, last - first))):
        low_B, high_B = bounds[0], bounds[-1]
        block_CB = updates_CD[:, columns].to(low_B.dtype)
        moved_B = (low_B != 0) | (high_B != 0)
        inside_CB = (torch.clamp(block_CB, low_B, high_B) == block_CB).to(low_B.dtype)
        tied_B = moved_B & (inside_CB.sum(0) != places)
        counts_C += inside_CB @ (moved_B & ~tied_B).to(low_B.dtype)
        counted += int(moved_B.sum())
        if bool(tied_B.any()):
            rows_CT = block_CB[:, tied_B]
            counts_C += survivors(rows_CT, low_B[tied_B], high_B[tied_B], first, places).to(counts_C.device)
    return counts_C / counted if counted else torch.full_like(counts_C, places / len(updates_CD))


def printed_survival(updates_CD: Tensor, first: int, last: int) -> Tensor:
    """`survival` as printed: values are sorted stably, so that among equals the lowest row counts as the smallest."""
    counts_C = torch.zeros(len(updates_CD), dtype=torch.float64, device=updates_CD.device)
    counted = 0
    for block_CB in torch.split(updates_CD, COLUMNS, dim=1):
        values_CB, rows_CB = block_CB.sort(dim=0, stable=True)
        moved_B = values_CB[first : last + 1].mean(0) != 0
        counted += int(moved_B.sum())
        kept = rows_CB[first : last + 1, moved_B].flatten()
        counts_C += torch.bincount(kept, minlength=len(updates_CD))
    return counts_C / counted if counted else counts_C
