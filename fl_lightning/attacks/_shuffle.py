"""Shuffle: the honest mean with its coordinates in random order, which no statistic of single coordinates notices.

References:
    Xu, Huang, Song, Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient Filtering" (SignGuard),
    ICDCS 2022, filters by norm and by the statistics of signs: this is the update that has both of an honest client.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._perturbation import direction, wide
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


def shuffle(known_HD: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of the known updates with permuted coordinates, at the median of their norms.

    Args:
        known_HD: `[H, D]` updates that the attackers know.
        generator: CPU generator; draws the permutation.

    Returns:
        `[D]` with the signs and relative magnitudes of the mean, in another order; zero where the mean is.
    """
    known_HD = wide(known_HD)
    order_D = torch.randperm(known_HD.shape[1], generator=generator).to(known_HD.device)
    length = float(torch.linalg.vector_norm(known_HD, dim=1).median())
    return direction(known_HD.mean(0))[order_D] * length


class Shuffle(Crafted):
    """Shuffle: all malicious clients send the honest mean with its coordinates in an order drawn afresh each round.

    Norm, counts of signs and histogram of magnitudes are an honest client's; the direction is random.
    """

    name: ClassVar[str] = "shuffle"
    cites: ClassVar[tuple[str, ...]] = ("xu2022byzantine",)
    serves: ClassVar[tuple[str, ...]] = ("any",)

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of the permuted mean."""
        known_HP = known_parameters(view)
        crafted_P = shuffle(known_HP, view.generator("order"))
        metrics = {"norm": float(torch.linalg.vector_norm(crafted_P))}
        return Poisoned(self.rows(view, crafted_P, known_HP.mean(0)), metrics=metrics)
