"""Distances between the rows from products of the rows, exact also where the rows nearly coincide."""

from itertools import pairwise

import torch
from torch import Tensor

from fl_lightning.aggregators._threads import by_columns

BLOCK_COLUMNS = 16_384  # stay in cache
ACCELERATOR_COLUMNS = 262_144
CANCELLED = 0.01  # a distance below this share of the products it was computed from is computed again


def gram(updates_CD: Tensor, centre: int | None = None, *, rows: Tensor | None = None) -> Tensor:
    """`[n, n]` float64 on the CPU: inner products of the rows, measured from one of them.

    Products are taken in float32 over blocks of columns that stay in cache and summed in float64; accelerators,
    which would be free to round float32 to TF32, multiply in float64. When float32 overflows or underflows,
    everything is in float64.

    Args:
        updates_CD: `[C, D]` finite.
        centre: index of the row that is the origin; None: the origin itself.
        rows: `[n]` indices of the rows; None: all.
    """
    dtype = torch.promote_types(updates_CD.dtype, torch.float32)
    products = blocked_gram(updates_CD, centre, rows, torch.float64 if updates_CD.is_cuda else dtype)
    # Squares below 1e-30 per row have lost digits to underflow; a sum that is not finite has overflowed.
    if dtype != torch.float64 and not 1e-30 < float(products.diagonal().max()) < torch.inf:
        products = blocked_gram(updates_CD, centre, rows, torch.float64)
    return products


def blocked_gram(updates_CD: Tensor, centre: int | None, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`gram` with products in the given precision."""
    n_rows = len(updates_CD) if rows is None else len(rows)
    width = ACCELERATOR_COLUMNS if updates_CD.is_cuda else BLOCK_COLUMNS
    tiles = [slice(0, n_rows)] if updates_CD.is_cuda else row_tiles(n_rows)
    device = torch.device("cpu") if updates_CD.is_mps and dtype == torch.float64 else updates_CD.device

    def part(columns: slice) -> Tensor:
        products = torch.zeros(n_rows, n_rows, dtype=torch.float64)
        for start in range(columns.start, columns.stop, width):
            within = slice(start, min(start + width, columns.stop))
            block = (updates_CD[:, within] if rows is None else updates_CD[rows, within]).to(device, dtype)
            if centre is not None:
                block = block - updates_CD[centre, within].to(device, dtype)
            for tile in tiles:
                products[tile, : tile.stop] += (block[tile] @ block[: tile.stop].mT).cpu()
        return products

    lower = torch.stack(by_columns(part, updates_CD.shape[1], updates_CD.device)).sum(0).tril()
    return lower + lower.tril(-1).T


def row_tiles(n_rows: int) -> list[slice]:
    """About three tiles of the lower triangle: fewer multiply what symmetry gives, narrower ones leave vector units idle."""
    tile = max(16, n_rows // 3 // 16 * 16)
    edges = [*range(0, max(1, n_rows - tile // 2), tile), n_rows]
    return [slice(*pair) for pair in pairwise(edges)]


def squared_distances(updates_CD: Tensor, products_CC: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances between all pairs of rows.

    |x_i - x_j|^2 = <x_i, x_i> + <x_j, x_j> - 2 <x_i, x_j> loses all digits when the rows nearly coincide. Pairs
    whose distance is small against the products are therefore computed again with one of these rows as the origin,
    until none is left; independent rows need one pass, a cluster of near-copies one more pass over its rows.

    Args:
        updates_CD: `[C, D]` finite floating point.
        products_CC: `gram` of the rows, where it is known already.

    Returns:
        `[C, C]` float64 on the CPU, symmetric, 0 on the diagonal; identical rows have identical distances to all
        others.
    """
    squared_CC, doubtful_CC = from_products(gram(updates_CD) if products_CC is None else products_CC)
    while bool(doubtful_CC.any()):
        centre = int(doubtful_CC.sum(1).argmax())
        rows = torch.cat([torch.tensor([centre]), doubtful_CC[centre].nonzero().flatten()])
        again, still = from_products(gram(updates_CD, centre, rows=rows.to(updates_CD.device)))
        pairs = rows[:, None], rows[None, :]
        redone = doubtful_CC[pairs]
        squared_CC[pairs] = torch.where(redone, again, squared_CC[pairs])
        doubtful_CC[pairs] = redone & still
        doubtful_CC[centre] = doubtful_CC[:, centre] = False
    squared_CC = squared_CC.nan_to_num(nan=torch.inf)
    original = (squared_CC == 0).int().argmax(1)  # rounding must not tell a row from its copy, nor break their tie
    return squared_CC[original][:, original]


def direct_distances(rows_CF: Tensor) -> Tensor:
    """`[C, C]` float64 distances of rows that are few numbers wide, from the differences themselves: nothing cancels."""
    exact = rows_CF.double()
    return torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")


def from_products(products: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances, and which of them cancellation has made doubtful."""
    norms = products.diagonal()
    sums = norms[:, None] + norms
    squared = (sums - 2 * products).clamp(min=0)
    squared.fill_diagonal_(0)
    doubtful = squared < CANCELLED * sums  # a row that is not finite stays what it is
    return squared, doubtful.fill_diagonal_(False)
