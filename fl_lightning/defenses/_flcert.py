"""FLCert: several global models, each of a group of clients of its own, vote; few attackers cannot turn a clear vote.

References:
    Cao, Zhang, Jia, Gong, "FLCert: Provably Secure Federated Learning Against Poisoning Attacks", IEEE Transactions on
    Information Forensics and Security 2022, theorem 1 (FLCert-D).
"""

import torch
from torch import Tensor

from fl_lightning.participation import client_groups

__all__ = ["certified_clients", "client_groups", "voted"]


def certified_clients(first: int, second: int, first_label: int, second_label: int) -> int:
    """How many malicious clients cannot change a vote: floor((n_a - n_b - [b < a]) / 2), not below 0.

    Args:
        first: votes for the winner a.
        second: votes for the runner-up b.
        first_label: a; ties go to the smaller label.
        second_label: b.

    Example:
        >>> certified_clients(11, 5, first_label=3, second_label=1)
        2
    """
    return max(0, (first - second - int(second_label < first_label)) // 2)


def voted(predictions_Gn: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """`[n]` labels by majority (ties: the smaller label) and `[n]` how many malicious clients each withstands.

    Args:
        predictions_Gn: `[G, n]` int64, what the model of each group says.
        classes: K.

    Example:
        >>> voted(torch.tensor([[1, 0], [1, 0], [1, 2], [0, 2], [1, 2]]), 3)
        (tensor([1, 2]), tensor([1, 0]))
    """
    counts_nK = torch.nn.functional.one_hot(predictions_Gn, classes).sum(0)
    order_nK = counts_nK.sort(dim=1, descending=True, stable=True)
    certified = [
        certified_clients(*votes, *labels)
        for votes, labels in zip(order_nK.values[:, :2].tolist(), order_nK.indices[:, :2].tolist(), strict=True)
    ]
    return order_nK.indices[:, 0], torch.tensor(certified)
