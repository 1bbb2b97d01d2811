"""Which client holds how much of what."""

from collections.abc import Sequence

import torch
from torch import Tensor


def label_counts(assignment: Sequence[Tensor], y: Tensor, classes: int) -> Tensor:
    """How many samples of each class every client holds.

    Args:
        assignment: for each client its indices into `y`.
        y: `[n_train]` int64 labels in 0 ... K - 1.
        classes: number of classes K.

    Returns:
        int64 `[clients, K]`.

    Example:
        >>> label_counts([torch.tensor([0, 1]), torch.tensor([2])], torch.tensor([1, 1, 0]), classes=2).tolist()
        [[0, 2], [1, 0]]
    """
    sizes = torch.tensor([len(part) for part in assignment])
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    cells = owner * classes + y.cpu()[torch.cat(list(assignment))]
    return torch.bincount(cells, minlength=len(sizes) * classes).reshape(len(sizes), classes)
