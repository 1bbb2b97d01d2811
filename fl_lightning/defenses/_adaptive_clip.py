"""Adaptive clipping: the bound follows a quantile of the clients' norms, of which only a noisy count is read.

References:
    Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, algorithm 1 and
    theorem 1.
"""

from math import exp
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._noise import noise
from fl_lightning.defenses._spread import shortening
from fl_lightning.defenses._verdicts import filtered, trained_slice
from fl_lightning.errors import ConfigError
from fl_lightning.registry import Tunable


def next_bound(bound: float, norms_C: Tensor, quantile: float, eta: float, noise: float = 0.0) -> float:
    """B exp(-eta (b - quantile)) with b the share of norms within B, plus noise on the count.

    Args:
        bound: B, > 0.
        norms_C: `[C]` norms before clipping.
        quantile: the share that should be within the bound.
        eta: rate.
        noise: added to the count.

    Example:
        >>> import torch
        >>> round(next_bound(1.0, torch.tensor([0.5, 2.0, 3.0, 4.0]), 0.5, 0.2), 4)
        1.0513
    """
    within = (float((norms_C <= bound).sum()) + noise) / len(norms_C)
    return bound * exp(-eta * (within - quantile))


def sum_multiplier(z: float, count_std: float) -> float:
    """z_D = (z^-2 - (2 sigma_b)^-2)^(-1/2): noise on the sum such that it and the noisy count together give z.

    Args:
        z: noise multiplier wanted in all, >= 0; 0: no noise.
        count_std: sigma_b, the noise on the count.

    Raises:
        ConfigError: the count alone already gives away more than z allows.
    """
    if z == 0:
        return 0.0
    if z >= 2 * count_std:
        raise ConfigError(
            f"must be less than 2 sigma_b = {2 * count_std:g} (twice the noise on the count), got {z:g}",
            "noise_multiplier",
        )
    return float((z**-2 - (2 * count_std) ** -2) ** -0.5)


class AdaptiveClip(Defense):
    """Clips rows to a bound that follows a quantile of their norms from round to round, with noise for privacy if wanted.

    An attacker moves the bound by no more than a vote: with f of C rows its growth changes by at most exp(eta f / C) a round.

    Attributes:
        bound: B in round 0.
        quantile: share of the rows that should be within the bound.
        eta: rate at which the bound moves.
        count_noise: sigma_b, noise on the count, as a share of C.
        noise_multiplier: z, noise on the sum in units of the bound, the count included; 0: none.
    """

    name: ClassVar[str] = "adaptive_clip"
    cites: ClassVar[tuple[str, ...]] = ("andrew2021differentially",)
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    bound: Annotated[float, Tunable(0.05, 10, log=True)] = Field(default=0.1, gt=0)
    quantile: Annotated[float, Tunable(0.1, 0.9)] = Field(default=0.5, ge=0, le=1)
    eta: float = Field(default=0.2, ge=0)
    count_noise: float = Field(default=0.05, ge=0)
    noise_multiplier: float = Field(default=0.0, ge=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """All rows stay, clipped; the score is the norm before."""
        norms_C, n_rows = geometry_of(updates_CD, context).trained.norms, len(updates_CD)
        bound = float(state.get("bound", self.bound))
        count_std = self.count_noise * n_rows
        multiplier = sum_multiplier(self.noise_multiplier, count_std)
        drawn = count_std * float(torch.randn(1, generator=context.generator(self.name)))
        share = float(context.weights_C.max() / context.weights_C.sum())
        return filtered(
            updates_CD,
            context,
            torch.ones(n_rows, dtype=torch.bool),
            scale_C=shortening(norms_C, bound),
            scores_C=norms_C,
            state={
                "bound": next_bound(bound, norms_C, self.quantile, self.eta, drawn),
                "std": multiplier * bound * share,
            },
            metrics={"bound": bound, "clipped": float((norms_C > bound).double().mean())},
        )

    def after_step(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """Noise of z_D B on the sum, that is divided by C on the mean, on the trained parameters."""
        std = state.get("std", 0.0)
        if not std:
            return global_D, state
        trained = trained_slice(context)
        noisy_D = global_D.clone()
        noisy_D[trained] += noise(noisy_D[trained].shape, std, "gaussian", context.generator("noise")).to(global_D)
        return noisy_D, {**state, "std": 0.0}
