"""CRFL: the global model is clipped and perturbed after every round, which certifies it against small backdoors.

References:
    Xie, Chen, Chen, Li, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021, algorithm 1 and
    theorem 1.
"""

from collections.abc import Sequence
from math import erf, log, sqrt
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict
from fl_lightning.defenses._noise import noise
from fl_lightning.defenses._verdicts import filtered, trained_slice
from fl_lightning.registry import Tunable


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


class Crfl(Defense):
    """Clips the global model to a growing bound and adds noise to it after every round but the last.

    Attributes:
        rho0: bound of the model's norm in round 0.
        rho_slope: added to the bound every round.
        sigma: standard deviation of the noise.
    """

    name: ClassVar[str] = "crfl"
    cites: ClassVar[tuple[str, ...]] = ("xie2021crfl",)
    reads_rows: ClassVar[bool] = False

    rho0: Annotated[float, Tunable(0.5, 50, log=True)] = Field(default=2.0, gt=0)
    rho_slope: float = Field(default=0.1, ge=0)
    sigma: Annotated[float, Tunable(0.001, 0.5, log=True)] = Field(default=0.01, ge=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay; whether the model was clipped after the round before is told."""
        everybody_C = torch.ones(len(updates_CD), dtype=torch.bool)
        metrics = {"bound": self.rho0 + self.rho_slope * context.round, "clipped": state.get("clipped", 0.0)}
        return filtered(updates_CD, context, everybody_C, state=state, metrics=metrics)

    def after_step(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """Theta / max(1, |theta| / rho_t), then noise unless this was the last round."""
        trained = trained_slice(context)
        bound = self.rho0 + self.rho_slope * context.round
        clipped = float(global_D[trained].double().norm() > bound)
        model_D = clipped_model(global_D, bound, trained)
        if context.rounds is None or context.round + 1 < context.rounds:
            shape = model_D[trained].shape
            model_D[trained] += noise(shape, self.sigma, "gaussian", context.generator(self.name)).to(model_D)
        return model_D, {"clipped": clipped}
