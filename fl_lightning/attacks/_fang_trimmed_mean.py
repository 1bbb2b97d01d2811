"""Fang's attack on the trimmed mean: values just outside the benign range, on the side that the model moves away from.

References:
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 3.4 (b = 2).
    Lu, Li, Chen, Ma, "Defense against local model poisoning attacks to Byzantine-robust federated learning", Frontiers of
    Computer Science 2022, section 3.2 (b = 1.05; coordinates with s = 0).
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._fang import Fang
from fl_lightning.attacks._known_rows import honest_statistics
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View


def beyond_extremes(benign_BD: Tensor, direction_D: Tensor, b: float) -> tuple[Tensor, Tensor]:
    """The interval of crafted values where all benign models are known.

    s = -1: from the largest benign value w_max outwards to b w_max, or to w_max / b where w_max <= 0.
    s = +1: from the smallest benign value w_min outwards to w_min / b, or to b w_min where w_min <= 0.
    An extreme of exactly 0 makes the interval [0, 0]: a tie with the extreme benign value.

    Args:
        benign_BD: `[B, D]` benign *models* (not updates), B > 0.
        direction_D: `[D]` s, of -1, 0, 1.
        b: interval constant, > 1.

    Returns:
        `[D]` near end and `[D]` far end; without meaning where s = 0.

    Example:
        >>> beyond_extremes(torch.tensor([[1.0, -2.0], [2.0, -4.0]]), torch.tensor([-1.0, -1.0]), b=2.0)
        (tensor([ 2., -2.]), tensor([ 4., -1.]))
    """
    near_D = torch.where(direction_D < 0, benign_BD.amax(0), benign_BD.amin(0))
    outward_grows_D = near_D * direction_D < 0
    return near_D, torch.where(outward_grows_D, near_D * b, near_D / b)


def beyond_spread(honest_HD: Tensor, direction_D: Tensor, sigmas: float) -> tuple[Tensor, Tensor]:
    """The interval where the benign range is estimated: sigmas to sigmas + 1 standard deviations from the mean, against s.

    Args:
        honest_HD: `[H, D]` known honest updates (or models); one alone has no spread.
        direction_D: `[D]` s, of -1, 0, 1.
        sigmas: near end in standard deviations (divided by H).

    Returns:
        `[D]` near end and `[D]` far end.
    """
    mean_D, outward_D = honest_HD.mean(0), -direction_D * honest_HD.std(0, correction=0)
    return mean_D + sigmas * outward_D, mean_D + (sigmas + 1) * outward_D


def fang_trimmed_mean(near_D: Tensor, far_D: Tensor, n_malicious: int, generator: torch.Generator) -> Tensor:
    """`[M, D]` crafted values, each drawn uniformly between the two ends of its interval."""
    draws_MD = torch.rand(n_malicious, len(near_D), generator=generator).to(near_D)
    return near_D + draws_MD * (far_D - near_D)


class FangTrimmedMean(Fang):
    """Fang's attack on the trimmed mean: random values just outside the benign range, against the direction of progress.

    Attributes:
        b: interval constant of full knowledge.
        sigmas: near end of the interval of partial knowledge, in standard deviations; the far end is one more.
    """

    name: ClassVar[str] = "fang_trimmed_mean"
    cites: ClassVar[tuple[str, ...]] = ("fang2020local",)

    b: Annotated[float, Tunable(1.01, 10, log=True)] = Field(default=2.0, gt=1)
    sigmas: Annotated[float, Tunable(0.5, 6)] = Field(default=3.0, ge=0)

    def craft(self, view: View) -> Poisoned:
        """Draw every coordinate from its interval."""
        direction_D = self.direction(view)
        if self.sees_all(view):
            # The extremes of the models are the models of the extreme updates: no copy of [B, D] is needed.
            extremes_2D = torch.stack([view.benign_updates.amin(0), view.benign_updates.amax(0)])
            near_D, far_D = beyond_extremes(view.global_D + extremes_2D, direction_D, self.b)
            near_D, far_D = near_D - view.global_D, far_D - view.global_D
        else:
            near_D, far_D = beyond_spread(view.known_updates, direction_D, self.sigmas)
        crafted_MD = fang_trimmed_mean(near_D, far_D, view.n_malicious, view.generator("interval"))
        crafted_MD[:, direction_D == 0] = 0
        crafted_MD = honest_statistics(view, crafted_MD)
        return Poisoned(crafted_MD, metrics={"moved": float((direction_D != 0).double().mean())})
