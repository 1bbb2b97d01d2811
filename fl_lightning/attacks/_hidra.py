"""HIDRA: the largest bias that a filter of the variance along every direction lets through.

References:
    Choudhary, Kolluri, Saxena, "Attacking Byzantine Robust Aggregation in High Dimensions", IEEE S&P 2024, section IV (the
    attack in the direction of the honest mean, against filters whose threshold on the variance is known).
"""

from math import sqrt
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._perturbation import direction, wide
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import Knowledge, View
from fl_lightning.defenses import State


def largest_bias(variance: float, threshold: float, share: float) -> float:
    r"""How far crafted rows can lie from the honest mean along s before the variance of all rows exceeds a threshold.

    With a share e of crafted rows at mu - c s, all rows together have variance (1 - e) v + e (1 - e) c^2 along s, hence

    $$c^2 = \frac{T - (1 - e) v}{e (1 - e)}.$$

    Corrected here: the published code divides by $e^2 + e (1 - e)^2$ and takes T for T - (1 - e) v.

    Args:
        variance: v, of the honest rows along s.
        threshold: T, largest variance that the filter tolerates.
        share: e = M / C.

    Returns:
        c >= 0; 0 where there is no room, or nobody honest.

    Example:
        >>> round(largest_bias(variance=1.0, threshold=4.0, share=0.2), 4)
        4.4721
    """
    room = threshold - (1 - share) * variance
    return sqrt(room / (share * (1 - share))) if room > 0 and 0 < share < 1 else 0.0


def top_variance(rows_HD: Tensor) -> float:
    """Largest eigenvalue of the covariance of the rows (divisor H), from their H x H inner products."""
    away_HD = rows_HD - rows_HD.mean(0)
    return max(0.0, float(torch.linalg.eigvalsh((away_HD @ away_HD.T).double().cpu())[-1])) / len(rows_HD)


def hidra(known_HD: Tensor, threshold: float, share: float) -> Tensor:
    """The crafted update mu - c mu / |mu| that keeps the variance along the mean at a threshold.

    Args:
        known_HD: `[H, D]` updates that the attackers know.
        threshold: T, largest variance that the filter tolerates.
        share: of all rows that are crafted, M / C.

    Returns:
        `[D]` what all malicious clients send.
    """
    known_HD = wide(known_HD)
    mean_D = known_HD.mean(0)
    along_D = direction(mean_D)
    variance = float((known_HD @ along_D).double().var(correction=0))
    return mean_D - largest_bias(variance, threshold, share) * along_D


class Hidra(Crafted):
    """HIDRA: all malicious clients turn the mean back as far as a filter of the rows' variance tolerates.

    Made against rules that bound the variance along every direction, such as filtering, no-regret and spectral rules.

    Attributes:
        kappa: threshold of the filter, in units of the largest variance of the honest updates along any direction; sqrt(20) is
            the slack of the filters that the paper attacks.
        threshold: the same as an absolute variance, for a filter that states one; None: `kappa` decides.
    """

    name: ClassVar[str] = "hidra"
    cites: ClassVar[tuple[str, ...]] = ("choudhary2024attacking",)
    needs: ClassVar[Knowledge] = "partial"
    serves: ClassVar[tuple[str, ...]] = ("any",)

    knowledge: Knowledge = "partial"
    kappa: Annotated[float, Tunable(1, 20, log=True)] = Field(default=sqrt(20), gt=0)
    threshold: float | None = Field(default=None, ge=0)

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of mu - c s."""
        known_HP = known_parameters(view)
        threshold = self.kappa * top_variance(known_HP) if self.threshold is None else self.threshold
        mean_P = known_HP.mean(0)
        crafted_P = hidra(known_HP, threshold, view.n_malicious / view.n_clients)
        metrics = {"bias": float(torch.linalg.vector_norm(crafted_P - mean_P)), "threshold": threshold}
        return Poisoned(self.rows(view, crafted_P, mean_P), metrics=metrics)
