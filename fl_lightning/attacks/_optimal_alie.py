"""Optimal ALIE: as many standard deviations as do most harm to the server, to either side of the honest mean.

References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity", AISTATS 2023, section 6 (one side only; the published search misses optima below its first step).
    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019.
"""

from typing import Annotated, ClassVar, Literal

from torch import Tensor

from fl_lightning.attacks._optimal import Optimal
from fl_lightning.attacks._perturbation import perturbation
from fl_lightning.attacks._tunable import Choice

Signs = Literal["both", "minus", "plus"]


class OptimalAlie(Optimal):
    """Optimal ALIE: all malicious clients send mu - gamma sigma or mu + gamma sigma, whatever hurts the server most.

    Attributes:
        signs: which side of the mean is searched.
    """

    name: ClassVar[str] = "optimal_alie"

    signs: Annotated[Signs, Choice(("both", "minus", "plus"))] = "both"

    def directions(self, known_HP: Tensor) -> list[Tensor]:
        """Minus sigma, plus sigma, or both."""
        minus_P = perturbation(known_HP, "std")
        return {"both": [minus_P, -minus_P], "minus": [minus_P], "plus": [-minus_P]}[self.signs]
