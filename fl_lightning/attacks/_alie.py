"""A Little Is Enough: every coordinate moves just as far as the spread of the honest updates hides.

References:
    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019, algorithm 3.
"""

from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._perturbation import half_flipped, wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State

if TYPE_CHECKING:
    from fl_lightning.config import Experiment

Side = Literal["minus", "plus"]


def largest_z(n_clients: int, n_malicious: int) -> float:
    """The largest deviation, in standard deviations, at which enough honest clients are still farther out.

    With s = floor(C / 2 + 1) - M supporters needed for a majority, z solves Phi(z) = (C - M - s) / (C - M). Corrected here:
    attackers in the majority need no supporter (s is at least 1), and z is never negative, where the attackers are too few.

    Args:
        n_clients: C, participants of the round.
        n_malicious: M <= C of them malicious.

    Returns:
        z >= 0.

    Example:
        >>> round(largest_z(50, 10), 4)
        0.2533
    """
    benign = max(1, n_clients - n_malicious)
    supporters = max(1, n_clients // 2 + 1 - n_malicious)
    hidden = (benign - supporters) / benign
    return NormalDist().inv_cdf(hidden) if hidden > 0.5 else 0.0


def alie(honest_HD: Tensor, z: float, *, sign: Side = "minus") -> Tensor:
    """The crafted update mu - z sigma (or mu + z sigma), coordinate by coordinate.

    Args:
        honest_HD: `[H, D]` honest updates that the attackers know.
        z: deviation in standard deviations of the H values (divided by H, so that one update has none).
        sign: `minus`, as in the paper, or `plus`.

    Returns:
        `[D]` what all malicious clients send.

    Example:
        >>> import torch
        >>> alie(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), z=1.5)
        tensor([0.5000, 2.0000])
    """
    return honest_HD.mean(0) + (z if sign == "plus" else -z) * honest_HD.std(0, correction=0)


class Alie(Crafted):
    """A Little Is Enough: all malicious clients send mean - z standard deviations of the honest updates they know.

    One attacker that knows nobody else's update sees no spread, and sends its honest update.

    Attributes:
        z: the deviation; None: the largest one that hides, from the numbers of clients and attackers. Some published tables took
            the normal distribution for its inverse, which makes about three times that.
        sign: `minus`, as in the paper, or `plus`, as much published code has it.
        flip_half: take the other sign on a random half of the coordinates, drawn afresh each round.
    """

    name: ClassVar[str] = "alie"
    cites: ClassVar[tuple[str, ...]] = ("baruch2019little",)
    serves: ClassVar[tuple[str, ...]] = ("any", "relabel")

    z: Annotated[float | None, Tunable(0.1, 5, log=True)] = Field(default=None, ge=0)
    sign: Annotated[Side, Choice(("minus", "plus"))] = "minus"
    flip_half: Annotated[bool, Choice((False, True))] = False

    def cautions(self, experiment: "Experiment") -> list[str]:
        """A deviation of 0 harms nobody; that of the paper is 0 where the attackers are too few."""
        clients, participation = experiment.partition.clients, experiment.participation
        everybody = isinstance(clients, int) and participation.per_round(clients) == clients
        idle = not largest_z(clients, participation.malicious) if self.z is None and everybody else self.z == 0
        numbers = f" for C={clients}, M={participation.malicious}" if self.z is None else ""
        return (
            [f"attack alie: z is 0{numbers}: attackers send the mean of honest updates (set attack.z)"] if idle else []
        )

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of one crafted update."""
        z = largest_z(view.n_clients, view.n_malicious) if self.z is None else self.z
        known_HP = wide(view.known_updates[:, : view.flat.trained])
        mean_P, crafted_P = known_HP.mean(0), alie(known_HP, z, sign=self.sign)
        if self.flip_half:
            crafted_P = mean_P + half_flipped(crafted_P - mean_P, view.generator("half"))
        idle = {} if z else {"idle": 1.0}  # the mean itself: too many clients, or too few, for any deviation to hide
        return Poisoned(self.rows(view, crafted_P, mean_P), metrics={"z": z} | idle)
