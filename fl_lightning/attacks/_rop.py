"""ROP: an orthogonal perturbation, relocated to where a server that clips looks from.

References:
    Ozfatura, Ozfatura, Küpçü, Gündüz, "Byzantines Can Also Learn From History: Fall of Centered Clipping in Federated
    Learning", IEEE Internet of Things Journal 2024 (arXiv 2208.09894), section IV (relocated orthogonal perturbation).
"""

from math import cos, radians, sin
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import CenteredClipping
from fl_lightning.attacks._base import Poisoned
from fl_lightning.attacks._crafted import Crafted
from fl_lightning.attacks._known_rows import known_parameters
from fl_lightning.attacks._perturbation import direction, wide
from fl_lightning.attacks._tunable import Choice, Tunable
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State

Start = Literal["ones", "sign", "random"]

PARALLEL = 1e-6
"""A vector of which less than this share is orthogonal to another counts as parallel to it."""


def rejection(vector_D: Tensor, axis_D: Tensor) -> Tensor:
    """`[D]` the part of a vector that is orthogonal to an axis, at length 1; zero where there is none."""
    unit_D = direction(axis_D.double())
    left_D = vector_D.double() - (vector_D.double() @ unit_D) * unit_D
    left_D -= (left_D @ unit_D) * unit_D
    if float(left_D.norm()) <= PARALLEL * float(vector_D.double().norm()):
        return torch.zeros_like(vector_D)
    return direction(left_D).to(vector_D)


def rop(
    mean_D: Tensor,
    reference_D: Tensor,
    start_D: Tensor,
    *,
    z: float,
    angle: float = 90.0,
    pi: float = 1.0,
    lam: float = 0.9,
) -> Tensor:
    r"""The crafted update at an angle to where the server looks from.

    With the server's reference r, $d = \lambda r + (1 - \lambda) \mu$ and the unit vector p of o orthogonal to d,

    $$x = \pi r + (1 - \pi) \mu + z (\sin\theta \, p + \cos\theta \, d / \|d\|).$$

    Args:
        mean_D: `[D]` mu, mean of the known honest updates.
        reference_D: `[D]` r, the server's last step.
        start_D: `[D]` o, the vector whose orthogonal part is taken; zero where it has none, which leaves the centre.
        z: length of the perturbation, >= 0.
        angle: theta in degrees; 90: orthogonal, 180: backwards, 270: minus the orthogonal.
        pi: 1: around the server's reference, 0: around the honest mean.
        lam: share of the reference in d.

    Returns:
        `[D]` what all malicious clients send.
    """
    axis_D = lam * reference_D + (1 - lam) * mean_D
    centre_D = pi * reference_D + (1 - pi) * mean_D
    turned_D = rejection(start_D, axis_D)
    aside_D = sin(radians(angle)) * turned_D + cos(radians(angle)) * direction(axis_D)
    return centre_D + z * direction(aside_D) if bool(turned_D.any()) else centre_D


class Rop(Crafted):
    """ROP: all malicious clients send the server's last step, perturbed at a right angle; made against centred clipping.

    What lies near the server's reference is not clipped, and what is orthogonal to it adds up from round to round.

    Attributes:
        angle: between perturbation and the direction of progress, in degrees; 180: backwards.
        pi: 1: perturb the server's last step, 0: the honest mean.
        lam: share of the last step in the direction of progress.
        z: length of the perturbation; None: the radius of the server's clipping where it is known, else the median distance of
            the known updates from their mean.
        direction: what the perturbation is made of: `ones` (the paper), easily recognised; the `sign` of the honest mean; or a
            `random` vector, drawn once.
    """

    name: ClassVar[str] = "rop"
    cites: ClassVar[tuple[str, ...]] = ("ozfatura2024byzantines",)
    serves: ClassVar[tuple[str, ...]] = ("any",)

    angle: Annotated[float, Tunable(60, 300)] = Field(default=90.0, ge=0, le=360)
    pi: Annotated[float, Tunable(0, 1)] = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.9, ge=0, le=1)
    z: float | None = Field(default=None, ge=0)
    direction: Annotated[Start, Choice(("ones", "sign", "random"))] = "ones"

    def poison(self, view: View, state: State) -> Poisoned:
        """Copies of the relocated perturbation."""
        known_HP = known_parameters(view)
        mean_P = known_HP.mean(0)
        reference_P = (wide(view.global_D) - wide(view.previous_D))[: view.flat.trained] / view.server_lr
        z = self._length(view, known_HP) if self.z is None else self.z
        start_P, state = self._start(view, mean_P, state)
        axis_P = self.lam * reference_P + (1 - self.lam) * mean_P
        if not bool(rejection(start_P, axis_P).any()):
            start_P = torch.randn(len(mean_P), generator=view.generator("direction")).to(mean_P)
        crafted_P = rop(mean_P, reference_P, start_P, z=z, angle=self.angle, pi=self.pi, lam=self.lam)
        return Poisoned(self.rows(view, crafted_P, mean_P), state, {"z": z, "known": float(len(known_HP))})

    def _length(self, view: View, known_HP: Tensor) -> float:
        """The server's clipping radius where it is known and a number, else what honest updates differ by."""
        rule = None if view.knowledge == "none" else view.aggregator
        if isinstance(rule, CenteredClipping) and rule.tau != "auto":
            return float(rule.tau)
        return float(torch.linalg.vector_norm(known_HP - known_HP.mean(0), dim=1).median())

    def _start(self, view: View, mean_P: Tensor, state: State) -> tuple[Tensor, State]:
        """`[P]` o."""
        if self.direction == "random":
            if "start_P" not in state:
                drawn_P = torch.randn(len(mean_P), generator=view.run_generator("start")).to(mean_P)
                state = {"start_P": drawn_P}
            return state["start_P"], state
        return mean_P.sign() if self.direction == "sign" else torch.ones_like(mean_P), state
