"""MPAF: fake clients drag the global model towards a base model of their own.

References:
    Cao, Gong, "MPAF: Model Poisoning Attacks to Federated Learning based on Fake Clients", CVPR Workshops 2022, section 4, eq. 3.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._perturbation import wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State

Base = Literal["fresh", "initial", "zero"]


def mpaf(global_D: Tensor, base_D: Tensor, scale: float) -> Tensor:
    """The update lambda (w' - G) from the global model towards the base model, lambda times as far as it is away.

    Sent by M of C clients with equal weights to a server that averages, lambda = C / M makes the global model w' plus the benign
    clients' step.

    Args:
        global_D: `[D]` G, the broadcast model.
        base_D: `[D]` w', the base model.
        scale: lambda > 0.

    Returns:
        `[D]` what all malicious clients send.

    Example:
        >>> mpaf(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]), scale=10.0)
        tensor([-10.,  20.])
    """
    return scale * (base_D - global_D)


class Mpaf(Crafted):
    """MPAF: all malicious clients drag the global model towards one bad model; needs neither data nor knowledge.

    Attributes:
        scale: lambda, length of the update in units of the distance to the base model.
        base: `fresh`: a new random initialisation of the architecture, drawn once; `initial`: the first model that the attackers
            were sent; `zero`.
    """

    name: ClassVar[str] = "mpaf"
    cites: ClassVar[tuple[str, ...]] = ("cao2022mpaf",)
    serves: ClassVar[tuple[str, ...]] = ("any",)

    scale: Annotated[float, Tunable(1, 1e6, log=True)] = Field(default=10.0, gt=0)
    base: Annotated[Base, Choice(("fresh", "initial", "zero"))] = "fresh"

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of scale * (base - global)."""
        global_P = wide(view.global_D)[: view.flat.trained]
        if not state:
            state = {"base_P": self._base(view, global_P)}
        crafted_P = mpaf(global_P, state["base_P"], self.scale)
        rows_MD = self.rows(view, crafted_P, torch.zeros_like(crafted_P))
        return Poisoned(rows_MD, state, {"distance": float(torch.linalg.vector_norm(state["base_P"] - global_P))})

    def _base(self, view: View, global_P: Tensor) -> Tensor:
        """`[P]` the model that the global one is dragged to."""
        if self.base == "zero":
            return torch.zeros_like(global_P)
        if self.base == "initial":
            return global_P.clone()
        return wide(view.flat.fresh(view.run_generator("base")))[: view.flat.trained].to(global_P)
