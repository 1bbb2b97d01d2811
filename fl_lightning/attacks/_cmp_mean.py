"""Covert model poisoning against the mean: the closed form of Theorem 1, corrected.

References:
    Wei, Li, Ding, Ma, Jeon, Poor, "Covert Model Poisoning Against Federated Learning: Algorithm Design and Optimization", 2021,
    section 3.2, Theorem 1 and appendix A.
"""

from torch import Tensor


def replacement(target_D: Tensor, benign_sum_D: Tensor, share: float) -> Tensor:
    """What every malicious client uploads so that the weighted mean becomes the target.

    theta^ = (T* - sum_{i in B} p_i theta_i) / P with P = sum_{i in M} p_i. With the true sum the aggregate is T* exactly.
    Works on models and on updates alike, as both sides move by the same vector.

    Args:
        target_D: `[D]` T*, what the mean shall be.
        benign_sum_D: `[D]` sum of p_i theta_i over the benign clients, or an estimate of it.
        share: P in (0, 1], the malicious clients' share of all weights.

    Returns:
        `[D]` the crafted row.

    Example:
        >>> import torch
        >>> replacement(torch.tensor([2.0]), torch.tensor([0.5]), 0.5)
        tensor([3.])
    """
    return (target_D - benign_sum_D) / share


def estimated_benign_sum(known_ND: Tensor, weights_N: Tensor, share: float) -> Tensor:
    """The benign clients' weighted sum as those who know only some rows estimate it: (1 - P) times the known mean.

    With the malicious clients' own honest models this is ((1 - P) / P) S_M, S_M = sum_{i in M} p_i theta_i, and `replacement`
    gives theta^ = (T* + (1 - 1/P) S_M) / P. Corrected here: eqs. 6, 22 and 23 print (2/P - 1) in place of (1 - 1/P), although
    -(1 - P)/P in the first line of eq. 22 is right. The squared distance to T* that remains is then
    (1 - P)^2 ||mean_B - mean_M||^2, which depends on the benign models; eq. 7 does not.

    Args:
        known_ND: `[N, D]` the models (or updates) that stand for the benign ones.
        weights_N: `[N]` their weights on any scale.
        share: P in (0, 1].

    Returns:
        `[D]` the estimate.
    """
    return (1 - share) * ((weights_N / weights_N.sum()).to(known_ND) @ known_ND)
