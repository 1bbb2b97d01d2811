"""Min-Sum: no farther from the honest updates, in sum, than the one of them that is farthest from the others.

References:
    Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning", NDSS 2021, section IV-B, eq. 9 (Min-Sum, agnostic of the aggregation rule), searched there by halving.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._perturbation import KINDS, Kind, half_flipped, perturbation, wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State

Bound = Literal["max", "min"]


def min_sum(known_HD: Tensor, direction_D: Tensor, bound: Bound = "max") -> float:
    r"""The largest gamma at which the squared distances of $\mu + \gamma p$ to the known rows sum to at most a known row's.

    The cross terms cancel around the mean, so that the crafted update lies exactly as far from it as the farthest known row:
    $\gamma = \max_i \|k_i - \mu\| / \|p\|$.

    Args:
        known_HD: `[H, D]` updates that the attackers know.
        direction_D: `[D]` p.
        bound: `max`: the largest of the known rows' sums, as in the paper; `min`: the smallest, as in the code that was
            published with it.

    Returns:
        gamma >= 0; 0 where the known rows are equal or p is zero.

    Example:
        >>> min_sum(torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 0.0]]), torch.tensor([-2.0, 0.0]))
        2.0
    """
    known_HD = wide(known_HD)
    length = float(torch.linalg.vector_norm(wide(direction_D)))
    if not length:
        return 0.0
    distances_H = torch.linalg.vector_norm(known_HD - known_HD.mean(0), dim=1)
    return float(distances_H.max() if bound == "max" else distances_H.min()) / length


class MinSum(Crafted):
    """Min-Sum: all malicious clients send an update exactly as far from the honest mean as the farthest honest one.

    Attributes:
        perturbation: direction in which the crafted update leaves the honest mean.
        bound: as far as the farthest (`max`, the paper) or the nearest (`min`, the published code) honest update.
        gamma: strength in units of the largest that hides (1); None: that one.
        flip_half: reverse the direction on a random half of the coordinates, drawn afresh each round.
    """

    name: ClassVar[str] = "min_sum"
    cites: ClassVar[tuple[str, ...]] = ("shejwalkar2021manipulating",)

    perturbation: Annotated[Kind, Choice(KINDS)] = "unit"
    bound: Annotated[Bound, Choice(("max", "min"))] = "max"
    gamma: Annotated[float | None, Tunable(0.01, 100, log=True)] = Field(default=None, ge=0)
    flip_half: Annotated[bool, Choice((False, True))] = False

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of mu + gamma p."""
        known_HP = known_parameters(view)
        direction_P = perturbation(known_HP, self.perturbation)
        if self.flip_half:
            direction_P = half_flipped(direction_P, view.generator("half"))
        gamma = min_sum(known_HP, direction_P, self.bound) * (1.0 if self.gamma is None else self.gamma)
        mean_P = known_HP.mean(0)
        rows_MD = self.rows(view, mean_P + gamma * direction_P, mean_P)
        return Poisoned(rows_MD, metrics={"gamma": gamma, "known": float(len(known_HP))})
