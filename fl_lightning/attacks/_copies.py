"""Many clients that send one crafted update, exactly or nearly."""

import torch
from torch import Tensor


def copies(
    crafted_D: Tensor, mean_D: Tensor, count: int, *, spread: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Rows around a crafted update, whose mean it is.

    Every row gets a Gaussian offset of length spread * |crafted - mean|; the offsets are then centred, so that their sum is
    0. Equal rows are what checks for duplicates and for pairwise similarity look for.

    Args:
        crafted_D: `[D]` what the clients mean to send.
        mean_D: `[D]` the honest mean, from which the length of the offsets is measured.
        count: M, number of rows.
        spread: length of an offset, relative to the deviation of the crafted update, >= 0; 0: exact copies.
        generator: CPU generator; needed for a spread above 0.

    Returns:
        `[M, D]`; one row has no offset.

    Example:
        >>> copies(torch.tensor([1.0, 2.0]), torch.zeros(2), 2)
        tensor([[1., 2.],
                [1., 2.]])
    """
    rows_MD = crafted_D.repeat(count, 1)
    if not spread or count == 1:
        return rows_MD
    offsets_MD = torch.randn(rows_MD.shape, generator=generator, dtype=torch.float64)
    length = spread * float(torch.linalg.vector_norm(crafted_D - mean_D))
    offsets_MD *= length / torch.linalg.vector_norm(offsets_MD, dim=1, keepdim=True).clamp(min=1e-30)
    offsets_MD -= offsets_MD.mean(0)
    return rows_MD + offsets_MD.to(rows_MD)
