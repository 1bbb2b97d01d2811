"""Min-Max: as far from the honest mean as the farthest pair of honest updates lies apart.

References:
    Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning", NDSS 2021, section IV-B, eq. 8 (Min-Max, agnostic of the aggregation rule), searched there by halving.
"""

from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import squared_distances
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._perturbation import KINDS, Kind, half_flipped, perturbation, wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


class Rays(NamedTuple):
    """What decides how far every point mu + gamma p is from the honest rows.

    Attributes:
        length2: a = |p|^2.
        along_H: b_i = p . (mu - k_i).
        away_H: c_i = |mu - k_i|^2.
    """

    length2: float
    along_H: Tensor
    away_H: Tensor


def rays_from_mean(known_HD: Tensor, direction_D: Tensor) -> Rays:
    """|mu + gamma p - k_i|^2 = c_i + 2 gamma b_i + a gamma^2: a, b and c in float64 on the CPU."""
    away_HD = known_HD.mean(0) - known_HD
    along_H = (away_HD @ direction_D).double().cpu()
    away_H = torch.linalg.vector_norm(away_HD, dim=1).double().square().cpu()
    return Rays(float(torch.linalg.vector_norm(direction_D).double().square()), along_H, away_H)


def min_max(known_HD: Tensor, direction_D: Tensor) -> float:
    r"""The largest gamma at which $\mu + \gamma p$ is no farther from any known row than two of these are from each other.

    In closed form, without a search: with $a = \|p\|^2$, $b_i = p \cdot (\mu - k_i)$, $c_i = \|\mu - k_i\|^2$ and the largest
    pairwise distance R,

    $$\gamma = \min_i \frac{-b_i + \sqrt{b_i^2 + a (R^2 - c_i)}}{a}.$$

    The length of p has no effect on the crafted update, only its direction.

    Args:
        known_HD: `[H, D]` updates that the attackers know.
        direction_D: `[D]` p.

    Returns:
        gamma >= 0; 0 where the known rows are equal or p is zero.

    Example:
        >>> known = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
        >>> round(min_max(known, torch.tensor([0.0, -1.0])), 6)  # mean (1, 1); sqrt(1 + gamma^2) = 2
        1.732051
    """
    known_HD, direction_D = wide(known_HD), wide(direction_D)
    a, b_H, c_H = rays_from_mean(known_HD, direction_D)
    if not a:
        return 0.0
    largest = float(squared_distances(known_HD).max())
    root_H = (b_H.square() + a * (largest - c_H)).clamp(min=0).sqrt()
    # Where b > 0 the difference of root and b loses digits; its conjugate does not.
    gamma_H = torch.where(b_H > 0, (largest - c_H) / (root_H + b_H), (root_H - b_H) / a)
    return max(0.0, float(gamma_H.min()))


class MinMax(Crafted):
    """Min-Max: all malicious clients send the farthest update whose largest distance to an honest one hides among theirs.

    Attributes:
        perturbation: direction in which the crafted update leaves the honest mean. `unit`, against the mean, does by far the
            most harm; tables of other papers often show `std`.
        gamma: strength in units of the largest that hides (1); None: that one.
        flip_half: reverse the direction on a random half of the coordinates, drawn afresh each round.
    """

    name: ClassVar[str] = "min_max"
    cites: ClassVar[tuple[str, ...]] = ("shejwalkar2021manipulating",)

    perturbation: Annotated[Kind, Choice(KINDS)] = "unit"
    gamma: Annotated[float | None, Tunable(0.01, 100, log=True)] = Field(default=None, ge=0)
    flip_half: Annotated[bool, Choice((False, True))] = False

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of mu + gamma p."""
        known_HP = known_parameters(view)
        direction_P = perturbation(known_HP, self.perturbation)
        if self.flip_half:
            direction_P = half_flipped(direction_P, view.generator("half"))
        gamma = min_max(known_HP, direction_P) * (1.0 if self.gamma is None else self.gamma)
        mean_P = known_HP.mean(0)
        rows_MD = self.rows(view, mean_P + gamma * direction_P, mean_P)
        return Poisoned(rows_MD, metrics={"gamma": gamma, "known": float(len(known_HP))})
