"""Zeno: rows are ranked by how much each alone lowers the loss on the server's samples, less a price for its length."""

from torch import Tensor


def zeno_scores(before: float, after_C: Tensor, norms_C: Tensor, rho: float) -> Tensor:
    """`[C]` float64, L(theta) - L(theta + x_i) - rho |x_i|^2; larger = better.

    Args:
        before: loss of the global model.
        after_C: `[C]` loss of the model with each update alone; NaN and Inf count as the worst.
        norms_C: `[C]` norms of the updates.
        rho: price of a unit of squared length; for updates -gamma g it is the paper's rho / gamma^2.

    Example:
        >>> import torch
        >>> zeno_scores(1.0, torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0]), 0.1)
        tensor([ 0.4000, -1.1000], dtype=torch.float64)
    """
    after_C = after_C.double().nan_to_num(nan=1e12, posinf=1e12).clamp(max=1e12)
    return before - after_C - rho * norms_C.double().square()
