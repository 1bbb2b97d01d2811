"""Adaptive clipping: the bound follows a quantile of the clients' norms, of which only a noisy count is read."""

from math import exp

from torch import Tensor

from fl_lightning.registry import ConfigError


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
