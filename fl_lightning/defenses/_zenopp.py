"""Zeno++, in rounds: a row counts, at the length of the server's own update, when it points far enough the same way."""

from torch import Tensor


def zenopp_scores(along_C: Tensor, norms_C: Tensor, length: float, rho: float = 0.1, eps: float = 0.0) -> Tensor:
    """`[C]` float64, <r, y_i> - rho |y_i|^2 + eps with y_i = x_i |r| / n_i; a row counts when it is not negative.

    Args:
        along_C: `[C]` products <x_i, r>.
        norms_C: `[C]` norms of the updates; a row of zeros scores -inf.
        length: |r|.
        rho: the cosine from which on a row counts, when eps is 0.
        eps: slack.

    Example:
        >>> import torch
        >>> zenopp_scores(torch.tensor([2.0, -4.0]), torch.tensor([2.0, 4.0]), 1.0)
        tensor([ 0.9000, -1.1000], dtype=torch.float64)
    """
    norms_C = norms_C.double()
    scores_C = along_C.double() * length / norms_C.clamp(min=1e-300) - rho * length**2 + eps
    return scores_C.masked_fill(norms_C == 0, -float("inf"))
