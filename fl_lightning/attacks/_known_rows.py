"""The rows that crafted updates are computed from."""

import torch
from torch import Tensor

from fl_lightning.attacks._perturbation import wide
from fl_lightning.attacks._view import View


def known_rows(view: View) -> Tensor:
    """`[H, D]` the updates that a crafting attacker uses, in float32 or wider.

    No knowledge: the attackers' own honest updates. Partial: these and the visible ones. Full: the benign updates alone
    (the own ones where no client is benign), because the attackers' honest updates never reach the server.
    """
    if view.knowledge == "full" and view.n_malicious < view.n_clients:
        return wide(view.benign_updates)
    return wide(view.own_updates if view.knowledge == "full" else view.known_updates)


def known_parameters(view: View) -> Tensor:
    """`[H, P]` the part of `known_rows` that is trained: without the running statistics of normalisation layers."""
    return known_rows(view)[:, : view.flat.trained]


def with_statistics(view: View, crafted_P: Tensor) -> Tensor:
    """`[..., D]` crafted parameters, followed by the mean of the attackers' own honest running statistics.

    A running variance that is pushed below zero makes NaN of every score: a crash, and no attack of any paper.
    """
    statistics = wide(view.own_updates)[:, view.flat.trained :].mean(0)
    return torch.cat([crafted_P, statistics.to(crafted_P).expand(*crafted_P.shape[:-1], -1)], dim=-1)


def honest_statistics(view: View, rows_MD: Tensor) -> Tensor:
    """`[M, D]` the rows with the running statistics of each attacker's own honest update; see `with_statistics`."""
    trained = view.flat.trained
    if trained == rows_MD.shape[1]:
        return rows_MD
    return torch.cat([rows_MD[:, :trained], view.own_updates[:, trained:].to(rows_MD)], dim=1)


def scaled(updates_MD: Tensor, factor: float | Tensor, trained: int) -> Tensor:
    """`[M, D]` trained updates times a factor; running statistics, the columns from `trained` on, times at most 1.

    Args:
        updates_MD: `[M, D]` updates.
        factor: of all rows, or `[M, 1]` one each; at least 0.
        trained: how many columns, the first ones, are parameters.

    Example:
        >>> scaled(torch.tensor([[1.0, 2.0, -0.1]]), 5.0, trained=2)
        tensor([[ 5.0000, 10.0000, -0.1000]])
    """
    if trained == updates_MD.shape[1]:
        return factor * updates_MD
    capped = factor.clamp(max=1) if isinstance(factor, Tensor) else min(factor, 1.0)
    return torch.cat([factor * updates_MD[:, :trained], capped * updates_MD[:, trained:]], dim=1)
