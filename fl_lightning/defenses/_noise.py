"""Clipping and noise, and what privacy they give.

References:
    Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014, section 3.3 (Laplace mechanism).
    Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal Denoising",
    ICML 2018, theorem 8 (Gaussian mechanism, exact).
    Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 2019.
"""

import importlib.util
import warnings
from math import erfc, exp, inf, sqrt
from typing import Literal

import torch
from torch import Tensor

from fl_lightning.aggregators import Layout
from fl_lightning.defenses._base import ServerContext, geometry_of, trained_of
from fl_lightning.errors import ConfigError

Distribution = Literal["laplace", "gaussian"]


def clip(updates_CD: Tensor, max_norm: float) -> Tensor:
    """Every row scaled down to the given norm: u / max(1, |u| / M).

    Example:
        >>> clip(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    norms_C = torch.linalg.vector_norm(updates_CD, dim=1, dtype=torch.float64)
    clipped_CD: Tensor = updates_CD * clip_factors(norms_C, max_norm).to(updates_CD.dtype)[:, None]
    return clipped_CD


def bounding_norms(updates_CD: Tensor, context: ServerContext) -> Tensor:
    """`[C]` float64 norms of the rows' parameters; from inner products where something after this needs these anyway."""
    geometry = geometry_of(updates_CD, context).trained
    if geometry.products_follow:
        return geometry.norms
    norms: Tensor = torch.linalg.vector_norm(trained_of(updates_CD, context), dim=1, dtype=torch.float64)
    return norms


def clip_factors(norms_C: Tensor, max_norm: float) -> Tensor:
    """`[C]` what scales rows of these norms down to a bound: min(1, M / |u|)."""
    return (max_norm / norms_C.clamp(min=1e-300)).clamp(max=1)


def noised(
    global_D: Tensor, std: float, distribution: Distribution, generator: torch.Generator, layout: Layout | None
) -> Tensor:
    """`[D]` the model with noise on its parameters; running statistics, whose variances must not be negative, have none."""
    if not std:
        return global_D
    trained = slice(0, len(global_D)) if layout is None else layout.trained
    noisy_D = global_D.clone()
    noisy_D[trained] += noise(noisy_D[trained].shape, std, distribution, generator).to(noisy_D)
    return noisy_D


def noise(shape: torch.Size, std: float, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Independent float32 noise on the CPU with the given standard deviation; a Laplace scale is std / sqrt(2)."""
    if distribution == "gaussian":
        return std * torch.randn(shape, generator=generator)
    first = torch.empty(shape).exponential_(generator=generator)
    return first.sub_(torch.empty(shape).exponential_(generator=generator)).mul_(std / sqrt(2))


def epsilon(
    sensitivity: float, std: float, releases: int, dimension: int, distribution: Distribution, delta: float
) -> float:
    r"""Differential privacy after some releases with fresh noise.

    Gaussian: T releases are one with $\\mu = \\Delta_2 \\sqrt{T} / \\sigma$; $\\epsilon$ solves
    $\\delta = \\Phi(\\mu / 2 - \\epsilon / \\mu) - e^\\epsilon \\Phi(-\\mu / 2 - \\epsilon / \\mu)$. Laplace (no delta):
    $\\epsilon = T \\Delta_1 / b$ with $\\Delta_1 \\le \\sqrt{D} \\Delta_2$.

    Args:
        sensitivity: largest Euclidean change of the released vector when one client changes.
        std: standard deviation of the noise.
        releases: number of rounds so far, at least 1; nobody is credited for rounds in which he did not take part.
        dimension: D.
        distribution: of the noise.
        delta: in (0, 1).

    Returns:
        epsilon, infinite without noise.

    Example:
        >>> round(epsilon(1.0, 1.0, 1, 10, "gaussian", 1e-5), 3)
        4.377
    """
    if std == 0:
        return inf
    if distribution == "laplace":
        return releases * sqrt(dimension) * sensitivity * sqrt(2) / std
    mu = sensitivity * sqrt(releases) / std

    def spent(eps: float) -> float:
        # exp(eps) alone overflows where the second term has long vanished
        tail = _normal(-mu / 2 - eps / mu)
        return _normal(mu / 2 - eps / mu) - (exp(eps) * tail if tail > 0 and eps < 700 else 0.0)

    low, high = 0.0, 1.0
    while spent(high) > delta:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def epsilon_rdp(
    sensitivity: float, std: float, releases: int, delta: float, sample_rate: float = 1.0, orders: int = 256
) -> float:
    """Differential privacy of Gaussian releases to which each client contributes only with some probability.

    Rényi accounting of the Poisson-sampled Gaussian mechanism by Opacus, whose neighbours differ by adding or removing a client.

    Args:
        sensitivity: largest Euclidean change of the released vector when one client is added or removed.
        std: standard deviation of the noise.
        releases: number of rounds so far, at least 1.
        delta: in (0, 1).
        sample_rate: probability of taking part in a round, in (0, 1].
        orders: the largest Rényi order that is tried.

    Returns:
        epsilon, infinite without noise; an upper bound of the exact value.

    Raises:
        ConfigError: Opacus is not installed.
    """
    if importlib.util.find_spec("opacus") is None:
        raise ConfigError("this accountant comes with Opacus: pip install fl-lightning[privacy]", "accountant")
    if std == 0:
        return inf
    from opacus.accountants.analysis import rdp

    tried = [1 + step / 10 for step in range(1, 100)] + [float(order) for order in range(11, orders)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when the best order is the first or last tried: still a valid bound
        spent = rdp.compute_rdp(q=sample_rate, noise_multiplier=std / sensitivity, steps=releases, orders=tried)
        return float(rdp.get_privacy_spent(orders=tried, rdp=spent, delta=delta)[0])


def _normal(x: float) -> float:
    """Distribution function of the standard normal."""
    return erfc(-x / sqrt(2)) / 2
