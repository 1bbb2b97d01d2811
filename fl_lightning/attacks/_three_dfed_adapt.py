"""What 3DFed's attackers read from the global model, and how they adapt: plain functions.

References:
    Li, Ye, Hu, Li, Wang, Fang, Shi, "3DFed: Adaptive and Extensible Framework for Covert Backdoor Attack in Federated Learning",
    IEEE S&P 2023, section 4 (indicators) and algorithm 2 (adaptive tuning).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Fate = Literal["accepted", "clipped", "rejected"]
CLIPPED_BELOW = 0.8
GROUP = 5
ENOUGH = 0.8
STRIDE = 0.1
LOW, HIGH = 0.01, 0.99


class Feedback(NamedTuple):
    """What became of the rows that carried an indicator.

    Attributes:
        fates: of each row, empty if the server adds noise.
        noise: the server adds noise (or the indicator was lost in others' updates): it tells nothing.
    """

    fates: list[Fate]
    noise: bool = False


def feedback(ratios: Sequence[float], threshold: float = 1e-5) -> Feedback:
    """Read what the server did with each row from how much of its indicator is in the global update.

    Args:
        ratios: (G_t - G_(t-1))[j_i] / value_i of each row's own coordinate.
        threshold: up to this a row was rejected; below minus this, or above 1, somebody else moved the coordinate.

    Returns:
        rejected: r <= threshold; clipped: r <= 0.8 of the largest; else accepted.

    Example:
        >>> feedback([0.05, 0.049, 0.02, 0.0]).fates
        ['accepted', 'accepted', 'clipped', 'rejected']
        >>> feedback([0.05, 1.2]).noise
        True
    """
    if any(ratio > 1 or ratio < -threshold for ratio in ratios):
        return Feedback([], noise=True)
    largest = max(ratios, default=0.0)

    def fate(ratio: float) -> Fate:
        if ratio <= threshold:
            return "rejected"
        return "clipped" if ratio <= CLIPPED_BELOW * largest else "accepted"

    return Feedback([fate(ratio) for ratio in ratios])


class Adapted(NamedTuple):
    """Settings of the next attacked round.

    Attributes:
        alphas: weight of a group's noise masks, one a group of five attackers.
        decoys: number of decoy models.
    """

    alphas: list[float]
    decoys: int


def adapt(
    attackers: Sequence[Fate],
    decoys: Sequence[Fate],
    alphas: Sequence[float],
    count: int,
    alpha_0: float,
    draw: torch.Generator,
) -> Adapted:
    """Tune the noise masks of each group and the number of decoys to what the server did.

    Args:
        attackers: fates of the backdoored rows, group after group of five.
        decoys: fates of the decoys.
        alphas: one a group.
        count: number of decoys so far.
        alpha_0: the smallest alpha to draw where no group was accepted.
        draw: CPU generator.

    Returns:
        Decoys: less the accepted ones, and one more if nobody at all was accepted or clipped. Alphas: all groups accepted:
        uniform between the two smallest (one group: unchanged); some: uniform within 0.1 above the smallest accepted; none:
        uniform in [alpha_0, 1]; cut to [0.01, 0.99]. A group is accepted if at least 80 % of it are.
    """
    accepted_decoys = sum(fate == "accepted" for fate in decoys)
    more = int(all(fate == "rejected" for fate in attackers) and not accepted_decoys)
    groups = [attackers[start : start + GROUP] for start in range(0, len(attackers), GROUP)]
    good = [sum(fate == "accepted" for fate in group) >= ENOUGH * len(group) for group in groups]
    kept = sorted(alpha for alpha, accepted in zip(alphas, good, strict=True) if accepted)
    if not kept:
        low, high = alpha_0, 1.0
    elif len(kept) < len(groups):
        low, high = kept[0], kept[0] + STRIDE
    else:
        low, high = kept[0], kept[1] if len(kept) > 1 else kept[0]
    drawn = low + (high - low) * torch.rand(len(groups), generator=draw, dtype=torch.float64)
    new = [min(max(float(alpha), LOW), HIGH) for alpha in drawn]
    return Adapted(list(alphas) if len(kept) == len(groups) == 1 else new, max(0, count - accepted_decoys) + more)


def masks(
    sums_N: Tensor, alpha: float, rows: int, width: int, generator: torch.Generator, steps: int = 30, lr: float = 0.1
) -> Tensor:
    r"""Noise for the last layer's rows of some classes, large where the model moves little, that cancels within a group.

    Minimises $\alpha \sum_j 0.1 / UP_j + (1 - \alpha)\, 0.03\, \lVert N \rVert$ plus a multiplier, raised by dual ascent, times
    $\lVert \sum_m N_m \rVert$, with $UP_j$ the size of the noisy row j, then centres the masks.

    Args:
        sums_N: `[n]` size of the attackers' update in each of these rows, at least 0.
        alpha: in (0, 1).
        rows: attackers of the group, g.
        width: weights of a row, w.
        generator: CPU generator.
        steps: of SGD.
        lr: of SGD and of the multiplier.

    Returns:
        `[g, n, w]`, whose sum over the group is 0; a single attacker gets no noise.
    """
    if rows < 2:
        return torch.zeros(rows, len(sums_N), width, dtype=sums_N.dtype, device=sums_N.device)
    noise = 0.01 * torch.randn(rows, len(sums_N), width, generator=generator).to(sums_N)
    multiplier = 0.0
    for _ in range(steps):
        with torch.enable_grad():
            moving = noise.clone().requires_grad_()
            sizes = sums_N + moving.norm(dim=2)
            total = moving.sum(0).norm()
            loss = alpha * (0.1 / sizes.clamp(min=1e-3)).sum() + (1 - alpha) * 0.03 * moving.norm() + multiplier * total
            (gradient,) = torch.autograd.grad(loss, moving)
        norm = float(gradient.norm())
        noise = noise - lr * gradient / max(1.0, norm)
        multiplier += lr * float(total.detach())
    return noise - noise.mean(0)
