"""Inner product manipulation: the aggregate shall point away from the honest direction.

References:
    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019, section 4.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._perturbation import wide
from fl_lightning.attacks._tunable import Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


def ipm(honest_HD: Tensor, epsilon: float) -> Tensor:
    """The crafted update -epsilon * mean of the honest ones.

    Sent by M of C clients with equal weights, it makes the mean of all equal to (C - M - epsilon M) / C times the benign mean:
    reversed for epsilon > (C - M) / M. A small epsilon stays inside the honest cluster, which is what distance rules accept.

    Args:
        honest_HD: `[H, D]` honest updates that the attackers know (in the paper: the benign clients').
        epsilon: factor, >= 0.

    Returns:
        `[D]` what all malicious clients send.

    Example:
        >>> import torch
        >>> ipm(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), epsilon=0.5)
        tensor([-1., -1.])
    """
    return -epsilon * honest_HD.mean(0)


class Ipm(Crafted):
    """Inner product manipulation: all malicious clients send -epsilon times the mean of the benign updates.

    With less than full knowledge the mean of the honest updates that the attackers know stands for it.

    Attributes:
        epsilon: factor on the reversed mean.
    """

    name: ClassVar[str] = "ipm"
    cites: ClassVar[tuple[str, ...]] = ("xie2019fall",)
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")

    epsilon: Annotated[float, Tunable(0.05, 20, log=True)] = Field(default=0.5, ge=0)

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of one crafted update."""
        all_known = view.knowledge == "full" and view.n_malicious < view.n_clients
        honest_HD = view.benign_updates if all_known else view.known_updates
        honest_HP = wide(honest_HD[:, : view.flat.trained])
        return Poisoned(self.rows(view, ipm(honest_HP, self.epsilon), honest_HP.mean(0)))
