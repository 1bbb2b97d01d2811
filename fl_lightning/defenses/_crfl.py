"""CRFL: the global model is clipped and perturbed after every round, which certifies it against small backdoors."""

from collections.abc import Sequence
from math import erf, log, sqrt

import torch
from torch import Tensor


def clipped_model(theta_D: Tensor, bound: float, trained: slice = slice(None)) -> Tensor:
    """Theta / max(1, |theta| / rho), the norm and the division over the trained parameters only.

    Example:
        >>> clipped_model(torch.tensor([3.0, 4.0]), 1.0)
        tensor([0.6000, 0.8000])
    """
    clipped_D = theta_D.clone()
    norm = float(torch.linalg.vector_norm(theta_D[trained], dtype=torch.float64))
    clipped_D[trained] /= max(1.0, norm / bound)
    return clipped_D


def certified_radius(
    p_a: float,
    p_b: float,
    sigma: float,
    later: Sequence[tuple[float, float]],
    attackers: Sequence[tuple[float, float, float, float, float]],
    lipschitz: float,
) -> float:
    r"""How far a backdoor may lie from the clean samples without changing a smoothed prediction; infinite when it never can.

    $R^2 = -\ln(1 - (\sqrt{p_A} - \sqrt{p_B})^2) \sigma^2 / (2 R L^2 \sum_i (p_i \gamma_i \tau_i \eta_i q_i)^2
    \prod_{t > t_{adv}} (2 \Phi(\rho_t / \sigma_t) - 1))$.

    Args:
        p_a: lower bound on the probability of the first class under the noise.
        p_b: upper bound on that of the second.
        sigma: noise of the attacked round.
        later: (rho_t, sigma_t) of the rounds after it.
        attackers: for each (weight p, scale gamma, local steps tau, learning rate eta, poisoned share q).
        lipschitz: L of the loss's gradient in the input; sqrt(2 + 2 rho + rho^2) for a linear softmax model.

    Returns:
        The radius, 0 when the classes cannot be told apart (p_a <= p_b).
    """
    if p_a <= p_b:
        return 0.0
    contraction = 1.0
    for rho, std in later:
        contraction *= erf(rho / (std * sqrt(2)))  # 2 Phi(z) - 1
    reach = sum((p * gamma * tau * eta * q) ** 2 for p, gamma, tau, eta, q in attackers)
    scale = 2 * len(attackers) * lipschitz**2 * reach * contraction
    margin = 1 - (sqrt(p_a) - sqrt(p_b)) ** 2
    if scale == 0 or margin <= 0:
        return float("inf")
    return sqrt(-log(margin) * sigma**2 / scale)
