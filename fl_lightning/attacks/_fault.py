"""Faults: clients that are broken rather than malicious; what a server must survive before any attack.

References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS
    2017, section 1 (software bugs, hardware faults and stale machines as Byzantine failures).
"""

from math import ceil
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.attacks._base import Attack, Poisoned
from fl_lightning.attacks._tunable import Choice
from fl_lightning.attacks._view import View
from fl_lightning.defenses import State

Breakage = Literal["inf", "nan", "huge", "tiny", "bit_flip", "stale"]
CONSTANTS = {"inf": float("inf"), "nan": float("nan"), "huge": 1e30, "tiny": 1e-30}


def bits_flipped(honest_MD: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Updates in which a random bit of some float32 numbers is the wrong way round.

    Args:
        honest_MD: `[M, D]` updates.
        share: of the coordinates of every row that are hit, in (0, 1]; at least one is.
        generator: CPU generator.

    Returns:
        `[M, D]`, which may hold NaN, Inf and huge numbers.
    """
    rows_MD = honest_MD.to("cpu", torch.float32).clone()
    hit = ceil(share * rows_MD.shape[1])
    for row_D in rows_MD.view(torch.int32):
        where = torch.randperm(len(row_D), generator=generator)[:hit]
        bits = torch.randint(0, 32, (hit,), generator=generator)
        row_D[where] ^= (torch.ones_like(bits) << bits).to(torch.int32)
    return rows_MD.to(honest_MD)


class Fault(Attack):
    """Faults: malicious clients are broken.

    Not part of a search: what a broken client sends is not chosen for its effect.

    Attributes:
        kind: `inf`, `nan`, `huge` (1e30) or `tiny` (1e-30) everywhere; `bit_flip`: the honest update with wrong bits; `stale`:
            the honest update to the model of the round before.
        share: of the coordinates in which a bit flips.
    """

    name: ClassVar[str] = "fault"
    cites: ClassVar[tuple[str, ...]] = ("blanchard2017machine",)
    serves: ClassVar[tuple[str, ...]] = ("any",)
    finite: ClassVar[bool] = False

    kind: Annotated[Breakage, Choice(("inf", "nan", "huge", "tiny", "bit_flip", "stale"))] = "nan"
    share: float = Field(default=0.01, gt=0, le=1)

    def poison(self, view: View, state: State) -> Poisoned:
        """The broken updates."""
        if self.kind == "bit_flip":
            return Poisoned(bits_flipped(view.own_updates, self.share, view.generator("bits")))
        if self.kind == "stale":
            return Poisoned(view.train(view.own_samples, start_D=view.previous_D))
        return Poisoned(torch.full_like(view.own_updates, CONSTANTS[self.kind]))
