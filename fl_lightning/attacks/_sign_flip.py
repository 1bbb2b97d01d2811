"""Sign flipping: malicious clients send their honest update with the opposite sign.

References:
    Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-robust stochastic aggregation methods for distributed learning from
    heterogeneous datasets", AAAI 2019, section 5 (sign-flipping attacks multiply the honest message by a negative constant).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._known_rows import honest_statistics, known_rows
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State


def sign_flip(honest_MD: Tensor, scale: float = 1.0) -> Tensor:
    """Reversed updates, u' = -scale * u.

    Args:
        honest_MD: `[M, D]` honest updates of the malicious clients.
        scale: factor, >= 0.

    Returns:
        `[M, D]` updates.

    Example:
        >>> import torch
        >>> sign_flip(torch.tensor([[1.0, -2.0]]), scale=3.0)
        tensor([[-3.,  6.]])
    """
    return -scale * honest_MD


class SignFlip(Attack):
    """Malicious clients send their honest update with the opposite sign.

    Attributes:
        scale: factor on the reversed update.
        of: what is reversed: each client's `own` honest update, or the `mean` of the updates that the attackers know.
    """

    name: ClassVar[str] = "sign_flip"
    cites: ClassVar[tuple[str, ...]] = ("li2019rsa",)
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")

    scale: Annotated[float, Tunable(0.1, 20, log=True)] = Field(default=1.0, ge=0)
    of: Annotated[Literal["own", "mean"], Choice(("own", "mean"))] = "own"

    def poison(self, view: View, state: State) -> Poisoned:
        """Reverse the honest updates."""
        honest_MD = view.own_updates
        if self.of == "mean":
            honest_MD = known_rows(view).mean(0).repeat(view.n_malicious, 1)
        return Poisoned(honest_statistics(view, sign_flip(honest_MD, self.scale)))
